"""All addresses of the site; the three apps each name their own."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path

from newsletter import doctor_views, guard, guide, health, post_mail
from subscribers.views import author, moving

urlpatterns = [
    path("healthz/", health.healthz, name="healthz"),
    path(f"{settings.ADMIN_PATH}/markdown/mail/", post_mail.preview, name="post_mail"),
    path(f"{settings.ADMIN_PATH}/markdown/", include("posts.admin_urls")),
    path(f"{settings.ADMIN_PATH}/account/", include("newsletter.account_urls")),
    path(f"{settings.ADMIN_PATH}/login/", guard.sign_in),
    path(f"{settings.ADMIN_PATH}/password_change/", guard.change_password),
    path(f"{settings.ADMIN_PATH}/doctor/", admin.site.admin_view(doctor_views.page), name="doctor"),
    path(f"{settings.ADMIN_PATH}/sign-up-form/", admin.site.admin_view(author.embed), name="embed"),
    path(f"{settings.ADMIN_PATH}/readers/import/", admin.site.admin_view(moving.imports), name="subscribers_imports"),
    path(
        f"{settings.ADMIN_PATH}/readers/import/<int:pk>/",
        admin.site.admin_view(moving.import_page),
        name="subscribers_import",
    ),
    path(
        f"{settings.ADMIN_PATH}/readers/import/<int:pk>/start/",
        admin.site.admin_view(moving.start),
        name="subscribers_import_start",
    ),
    path(
        f"{settings.ADMIN_PATH}/readers/import/<int:pk>/report.csv",
        admin.site.admin_view(moving.report),
        name="subscribers_import_report",
    ),
    path(
        f"{settings.ADMIN_PATH}/readers/export/",
        admin.site.admin_view(moving.export),
        name="subscribers_subscriber_export",
    ),
    path(
        f"{settings.ADMIN_PATH}/readers/export/<str:token>/",
        admin.site.admin_view(moving.download),
        name="subscribers_download",
    ),
    path(f"{settings.ADMIN_PATH}/welcome/", admin.site.admin_view(author.welcome), name="welcome"),
    path(f"{settings.ADMIN_PATH}/guide/", admin.site.admin_view(guide.guide), name="guide"),
    path(f"{settings.ADMIN_PATH}/guide/<slug:step>/", admin.site.admin_view(guide.guide), name="guide_step"),
    path(f"{settings.ADMIN_PATH}/", admin.site.urls),
    path("", include("subscribers.urls")),
    path("", include("newsletter.issue_urls")),
    path("", include("posts.urls")),
]

handler400 = "posts.views.bad_request"
handler404 = "posts.views.not_found"
handler500 = "posts.views.server_error"
