from django.urls import URLPattern

app_name = "markdown"
urlpatterns: list[URLPattern] = []
