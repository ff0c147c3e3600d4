"""Addresses of the reader's doors. The unsubscribe address works with and without its slash: a redirect would lose
the POST (RFC 8058, 3.1)."""

from django.urls import path

from subscribers import views

app_name = "subscribers"
urlpatterns = [
    path("subscribe/", views.subscribe, name="subscribe"),
    path("subscribe/form/", views.subscribe_form, name="subscribe_form"),
    path("subscribe/check-your-inbox/", views.check, name="check"),
    path("subscribe/confirm/<str:token>/", views.confirm, name="confirm"),
    path("subscribe/undo/", views.undo, name="undo"),
    path("never/<str:token>/", views.never, name="never"),
    path("u/<uuid:unsubscribe_id>/", views.unsubscribe, name="unsubscribe"),
    path("u/<uuid:unsubscribe_id>", views.unsubscribe),
    path("preferences/", views.preferences, name="preferences"),
    path("preferences/<str:token>/", views.preferences_open, name="preferences_open"),
]
