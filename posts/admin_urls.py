"""Addresses of the Markdown editor's preview and upload, below the admin's own."""

from django.urls import path

from posts import markdown_views

app_name = "markdown"
urlpatterns = [
    path("preview/", markdown_views.preview, name="preview"),
    path("upload/", markdown_views.upload, name="upload"),
]
