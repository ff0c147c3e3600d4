"""Addresses of the issues that were mailed."""

from django.urls import path

from newsletter import views

app_name = "newsletter"
urlpatterns = [
    path("issues/", views.issues, name="issues"),
    path("issues/<int:number>/", views.issue, name="issue"),
    path("issues/view/<str:token>/", views.view_in_browser, name="view_in_browser"),
    path("preferences/data/", views.reader_data, name="reader_data"),
    path("preferences/data.json", views.reader_data_file, name="reader_data_file"),
    path("preferences/issues/", views.reader_issues, name="reader_issues"),
    path("preferences/erase/", views.reader_erase, name="reader_erase"),
    path("c/<str:token>/", views.click, name="click"),
    path("c/<str:token>", views.click),  # some mail programs take a slash at the end away
]
