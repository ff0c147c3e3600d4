from django.conf import settings
from django.contrib.sitemaps.views import sitemap
from django.urls import path

from posts import feeds, pagecache, post_page, search_page, views
from posts.sitemaps import PageSitemap, PostSitemap

SITEMAPS = {"pages": PageSitemap, "posts": PostSitemap}

app_name = "posts"
urlpatterns = [
    path("", views.profile, name="profile"),
    path("posts/", views.archive, name="archive"),
    path("posts/<slug:slug>/", post_page.post, name="post"),
    path("posts/<slug:slug>.md", post_page.source, name="source"),
    path("series/<slug:slug>/", post_page.series, name="series"),
    path("tags/<slug:slug>/", views.tag, name="tag"),
    path("search/", search_page.search_posts, name="search"),
    path("about/", views.about, name="about"),
    path("privacy/", views.privacy, name="privacy"),
    path("preview/<str:token>/", post_page.preview, name="preview"),
    path("feed.xml", feeds.atom, name="atom"),
    path("rss.xml", feeds.rss, name="rss"),
    path("feed.json", feeds.json_feed, name="json_feed"),
    path("tags/<slug:slug>/feed.xml", feeds.atom, name="tag_atom"),
    path("tags/<slug:slug>/rss.xml", feeds.rss, name="tag_rss"),
    path("tags/<slug:slug>/feed.json", feeds.json_feed, name="tag_json_feed"),
    path("cards/<slug:slug>-<slug:fingerprint>.png", views.card, name="card"),
    path("cards/<slug:fingerprint>.png", views.card, name="site_card"),
    path("sitemap.xml", pagecache.kept("p")(sitemap), {"sitemaps": SITEMAPS}, name="sitemap"),
    path("robots.txt", views.robots, name="robots"),
    path(".well-known/security.txt", views.security, name="security"),
    path("favicon.ico", views.favicon),
    path("theme-<slug:fingerprint>.css", views.theme_css, name="theme"),
    path(f"{settings.MEDIA_URL.strip('/')}/<path:path>", views.media, name="media"),
]
