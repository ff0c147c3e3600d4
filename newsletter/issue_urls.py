"""Addresses of the issues that were mailed."""

from django.urls import path

from newsletter import views

app_name = "newsletter"
urlpatterns = [
    path("issues/", views.issues, name="issues"),
    path("issues/<int:number>/", views.issue, name="issue"),
    path("issues/view/<str:token>/", views.view_in_browser, name="view_in_browser"),
    path("c/<str:token>/", views.click, name="click"),
    path("c/<str:token>", views.click),  # some mail programs take a slash at the end away
]
