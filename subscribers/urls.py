"""Addresses of the reader's doors. The unsubscribe address works with and without its slash: a redirect would lose
the POST (RFC 8058, 3.1)."""

from django.urls import path

from subscribers.views import joining, leaving, preferences

app_name = "subscribers"
urlpatterns = [
    path("subscribe/", joining.subscribe, name="subscribe"),
    path("subscribe/form/", joining.subscribe_form, name="subscribe_form"),
    path("subscribe/check-your-inbox/", joining.check, name="check"),
    path("subscribe/confirm/<str:token>/", joining.confirm, name="confirm"),
    path("subscribe/undo/", leaving.undo, name="undo"),
    path("never/<str:token>/", joining.never, name="never"),
    path("u/<uuid:unsubscribe_id>/", leaving.unsubscribe, name="unsubscribe"),
    path("u/<uuid:unsubscribe_id>", leaving.unsubscribe),
    path("preferences/", preferences.preferences, name="preferences"),
    path("preferences/new-address/<str:token>/", preferences.new_address, name="new_address"),
    path("preferences/old-address/<str:token>/", preferences.old_address, name="old_address"),
    path("preferences/open/<str:token>/", preferences.preferences_open, name="preferences_open"),
]
