"""Read every setting from the environment; each is listed in .env.example and in README."""

import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from csp.constants import NONE, SELF
from django.urls import reverse_lazy
from environs import Env

from newsletter import embedded

BASE_DIR = Path(__file__).resolve().parent.parent

env = Env()
env.read_env(str(BASE_DIR / ".env"), recurse=False)

# Servers: named by the environment in production, embedded otherwise.
EMBEDDED_DIR = Path(env.str("EMBEDDED_DIR", "") or BASE_DIR / ".masthead")
EMBEDDED = not env.str("DATABASE_URL", "")
SERVERS = embedded.Servers(EMBEDDED_DIR, postgres_bin=env.str("POSTGRES_BIN", ""))

DATABASES = {"default": env.dj_db_url("DATABASE_URL", SERVERS.database_url, conn_max_age=600, conn_health_checks=True)}
REDIS_URL = env.str("REDIS_URL", "") or SERVERS.redis_url

# Secrets
SECRET_KEY = env.str("SECRET_KEY", "") or (SERVERS.secret("secret_key") if EMBEDDED else "")
SECRET_KEY_FALLBACKS: list[str] = env.list("SECRET_KEY_FALLBACKS", [])
# Never rotate: it hashes suppressed addresses and makes Message-IDs. Keep it outside the database and its dumps.
PEPPER = env.str("PEPPER", "") or (SERVERS.secret("pepper") if EMBEDDED else "")

# Keep it outside the database and its dumps: a copy of the database with another one sends nothing (manage.py rearm).
INSTANCE_ID = env.str("INSTANCE_ID", "") or (SERVERS.secret("instance") if EMBEDDED else env.str("SITE_URL", ""))

# The site
PORT, MAILBOX_PORT = env.int("PORT", 8000), env.int("MAILBOX_PORT", 8025)  # the demo's, on 127.0.0.1
SITE_URL = (env.str("SITE_URL", "") or f"http://127.0.0.1:{PORT}").rstrip("/")
SECURE = SITE_URL.startswith("https://")
DEBUG = env.bool("DEBUG", False)
TESTING = "pytest" in sys.modules
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", []) or [
    urlsplit(SITE_URL).hostname or "localhost",
    *([] if SECURE else ["localhost", "127.0.0.1", "[::1]"]),
]
ADMIN_PATH = env.str("ADMIN_PATH", "admin").strip("/")
CSRF_TRUSTED_ORIGINS = [SITE_URL]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.bool("TRUST_PROXY", False) else None
# How many proxies stand in front: that many entries from the right of X-Forwarded-For are theirs.
PROXY_COUNT = 1 if env.bool("TRUST_PROXY", False) else 0
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"  # strict would ask anew of one who comes from a mail
SECURE_HSTS_SECONDS = env.int("HSTS_SECONDS", 31536000) if SECURE else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SECURE
# A redirect would turn a one-click unsubscribe POST into a GET (RFC 8058, 3.1), so that path is left out.
SECURE_SSL_REDIRECT = SECURE and env.bool("SSL_REDIRECT", True)
SECURE_REDIRECT_EXEMPT = [r"^u/", r"^healthz/?$"]
SECURE_REFERRER_POLICY = "strict-origin-when-cross-origin"
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 6 * 1024 * 1024

# Every page answers 503, but for unsubscribing.
MAINTENANCE = env.bool("MAINTENANCE", False)

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.sitemaps",
    "django.contrib.postgres",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "csp",
    "markdownx",
    "anymail",
    "simple_history",
    "posts",
    "subscribers",
    "newsletter",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "newsletter.csp.AdminPolicyMiddleware",
    "newsletter.maintenance.MaintenanceMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "newsletter.guard.GuardMiddleware",
    "simple_history.middleware.HistoryRequestMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "posts.language.LanguageMiddleware",
]
ROOT_URLCONF = "newsletter.urls"
WSGI_APPLICATION = "newsletter.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "posts.context_processors.publication",
            ],
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

# Signing in: accounts are made by createsuperuser or in the admin, never by a visitor.
LOGIN_URL, LOGIN_REDIRECT_URL = reverse_lazy("account_login"), reverse_lazy("admin:index")
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
# Only the demo turns it off.
SECOND_FACTOR_REQUIRED = env.bool("SECOND_FACTOR_REQUIRED", True)
# Sending, exporting and settings ask again who is there if that was not shown for so many seconds.
CONFIRM_SECONDS = env.int("CONFIRM_SECONDS", 900)
ACCOUNT_ADAPTER = "newsletter.accounts.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_REAUTHENTICATION_TIMEOUT = CONFIRM_SECONDS
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_EMAIL_NOTIFICATIONS = True
ACCOUNT_EMAIL_UNKNOWN_ACCOUNTS = False
ACCOUNT_EMAIL_SUBJECT_PREFIX = ""
ACCOUNT_LOGOUT_REDIRECT_URL = LOGIN_URL
ACCOUNT_RATE_LIMITS = {
    "login": "30/m/ip",
    "login_failed": "10/m/ip,5/300s/key",
    "reset_password": "20/h/ip,3/h/key",
}
ALLAUTH_TRUSTED_PROXY_COUNT = PROXY_COUNT
MFA_ADAPTER = "newsletter.accounts.MFAAdapter"
MFA_FORMS = {"authenticate": "newsletter.accounts.CodeForm", "reauthenticate": "newsletter.accounts.CodeAgainForm"}
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_RECOVERY_CODES_SHOW_ONCE = True
MFA_ALLOW_UNVERIFIED_EMAIL = True
MFA_TOTP_TOLERANCE = 1
MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = not SECURE
# All processes count failed attempts together, whether the broker is there or not.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "newsletter_cache",
        "OPTIONS": {"MAX_ENTRIES": 10_000},
    }
}

# How much memory of each web process may hold finished pages; 0: each page is made anew for each visitor.
PAGE_CACHE_MB = env.int("PAGE_CACHE_MB", 64)

# Content Security Policy: public pages may load only our own style, script, image and form target.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "style-src": [SELF],
        "script-src": [SELF],
        "img-src": [SELF],
        "font-src": [SELF],
        "connect-src": [SELF],
        "manifest-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
    }
}

# Language and time: readers are spoken to in the publication's language, the author in this one.
LANGUAGE_CODE = "en"
LOCALE_PATHS = [BASE_DIR / "locale"]
USE_TZ = True
TIME_ZONE = "UTC"

# Files
STATIC_URL = "/static/"
# Demo and tests serve static files from where they lie; production collects them first.
COLLECTED = not (EMBEDDED or TESTING)
STATIC_ROOT = Path(env.str("STATIC_ROOT", "") or BASE_DIR / "staticfiles") if COLLECTED else None
MEDIA_URL = "/media/"
MEDIA_ROOT = Path(env.str("MEDIA_ROOT", "") or (EMBEDDED_DIR / "media" if EMBEDDED else BASE_DIR / "media"))
# Who unsubscribes while the database can't write; the web processes and the workers share it.
SPOOL_DIR = Path(env.str("SPOOL_DIR", "") or (EMBEDDED_DIR / "spool" if EMBEDDED else BASE_DIR / "spool"))
WHITENOISE_USE_FINDERS = not COLLECTED
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"
        if COLLECTED
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}

# Mail: issues go to this SMTP server through the ledger, system mail through Django's e-mail API.
SMTP_HOST = env.str("SMTP_HOST", "localhost")
SMTP_PORT = env.int("SMTP_PORT", 25)
SMTP_USER = env.str("SMTP_USER", "")
SMTP_PASSWORD = env.str("SMTP_PASSWORD", "")
SMTP_SECURITY = env.str("SMTP_SECURITY", "none")  # none, starttls, tls
SMTP_CA_FILE = env.str("SMTP_CA_FILE", "")  # certificates to trust instead of the system's
SMTP_TIMEOUT = env.float("SMTP_TIMEOUT", 300)
# RFC 5321, 4.5.3.2.6: a short wait after the final dot makes uncertain mail.
SMTP_FINAL_TIMEOUT = env.float("SMTP_FINAL_TIMEOUT", 600)
SMTP_MESSAGES_PER_CONNECTION = env.int("SMTP_MESSAGES_PER_CONNECTION", 500)
SMTP_CONNECTIONS = env.int("SMTP_CONNECTIONS", 8)  # of one worker process
# Writes the next envelope together with the final dot (RFC 2920): for relays known to take it.
SMTP_OVERLAP = env.bool("SMTP_OVERLAP", False)
# Empty: issues go by SMTP. Else one of anymail's backends, such as anymail.backends.postmark.EmailBackend.
SEND_BACKEND = env.str("SEND_BACKEND", "")
EMAIL_BACKEND = env.str("EMAIL_BACKEND", "") or "django.core.mail.backends.smtp.EmailBackend"
EMAIL_HOST, EMAIL_PORT = SMTP_HOST, SMTP_PORT
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = SMTP_USER, SMTP_PASSWORD
EMAIL_USE_TLS, EMAIL_USE_SSL = SMTP_SECURITY == "starttls", SMTP_SECURITY == "tls"
EMAIL_TIMEOUT = 30
ANYMAIL = env.json("ANYMAIL", {})
# Where bounces come home; empty: the sender's address is the envelope sender.
BOUNCE_DOMAIN = env.str("BOUNCE_DOMAIN", "")
# What the relay signs with, so that the doctor can look: a selector of the sender's domain, or the record's whole name.
DKIM_SELECTOR = env.str("DKIM_SELECTOR", "")
# Addresses in .test and example.* may join: for demo and tests only.
ALLOW_TEST_ADDRESSES = env.bool("ALLOW_TEST_ADDRESSES", False)

# Who may sign up, and how often
CHECK_MX = env.bool("CHECK_MX", not ALLOW_TEST_ADDRESSES)  # a worker asks DNS whether a domain takes mail
REFUSE_DISPOSABLE = env.bool("REFUSE_DISPOSABLE", False)
ALLOWED_DOMAINS: list[str] = env.list("ALLOWED_DOMAINS", [])  # never refused as throw-away
SIGNUPS_PER_NETWORK = env.int("SIGNUPS_PER_NETWORK", 60)  # forms an hour from one /24 or /64
SIGNUPS_PER_HOUR = env.int("SIGNUPS_PER_HOUR", 5000)  # from everybody
SIGNUP_COUNT_SECONDS = 0 if TESTING else 1  # a web process counts everybody's at most so often
# From so many sign-ups an hour on, if less than one in so many is confirmed, each has to be pressed for once more.
CHALLENGE_FROM = env.int("CHALLENGE_FROM", 50)
CHALLENGE_RATIO = env.int("CHALLENGE_RATIO", 5)

# Set: test mode, in which all mail goes to this address and a banner names whom it was for.
TEST_MODE_ADDRESS = env.str("TEST_MODE_ADDRESS", "")

# Sending: durations in seconds
LEASE_SECONDS = env.float("LEASE_SECONDS", 120)
RENEW_SECONDS = env.float("RENEW_SECONDS", 30)
CLAIM_SECONDS = env.float("CLAIM_SECONDS", 60)  # a task stops claiming after this long
CLAIM_BATCH = env.int("CLAIM_BATCH", 100)
INTENT_TTL_SECONDS = env.float("INTENT_TTL_SECONDS", 30)
RECONNECT_SECONDS = env.float("RECONNECT_SECONDS", 30)  # before a relay that can't be reached is tried again
RETRY_FIRST_SECONDS = env.float("RETRY_FIRST_SECONDS", 300)
RETRY_MAX_SECONDS = env.float("RETRY_MAX_SECONDS", 4 * 3600)
RETRY_FOR_SECONDS = env.float("RETRY_FOR_SECONDS", 72 * 3600)
SEND_TASKS = env.int("SEND_TASKS", 2)  # how many workers are woken for an issue
SEND_RATE = env.float("SEND_RATE", 0)  # copies a second, all workers together; 0: as fast as it goes
# So many replies among the last so many that blame the sender (or ask for a slower pace) pause the issue.
BREAKER_FAULTS = env.int("BREAKER_FAULTS", 20)
BREAKER_WINDOW = env.int("BREAKER_WINDOW", 200)
QUOTA_SECONDS = env.float("QUOTA_SECONDS", 3600)  # pause after “allowance used up” that names no time
DATABASE_GRACE_SECONDS = env.float(
    "DATABASE_GRACE_SECONDS", 900
)  # answers are kept in memory for a database that is away

# Copies of which nobody knows whether the relay took them
UNKNOWN_POLICY = env.str("UNKNOWN_POLICY", "hold")  # hold, resend
UNKNOWN_SETTLE_SECONDS = env.float("UNKNOWN_SETTLE_SECONDS", 900)  # before anything is concluded
RELAY_LOG = env.str("RELAY_LOG", "")  # of a Postfix on this machine, such as /var/log/mail.log

# What the author is told
READY_SECONDS = env.float("READY_SECONDS", 24 * 3600)  # nothing is ready so long before a date
LATE_SECONDS = env.float("LATE_SECONDS", 300)  # an issue has not begun so long after its instant
STALL_SECONDS = env.float("STALL_SECONDS", 600)  # an issue makes no progress for so long
ALERT_WEBHOOK_URL = env.str("ALERT_WEBHOOK_URL", "")
DISPATCH_SECONDS = env.float("DISPATCH_SECONDS", 60)
SWEEP_SECONDS = env.float("SWEEP_SECONDS", 30)

# How many days it is kept; 0: for ever. Network and browser in the log of consent; addresses and answers of copies,
# after the issue ended; mails to readers beside issues.
IP_DAYS = env.int("IP_DAYS", 365)
DELIVERY_DAYS = env.int("DELIVERY_DAYS", 365)
MAIL_DAYS = env.int("MAIL_DAYS", 90)
RETENTION_SECONDS = env.float("RETENTION_SECONDS", 3600)

# Celery: a message is a hint that carries ids; PostgreSQL is the queue of truth.
CELERY_BROKER_URL = SERVERS.celery_url(REDIS_URL)
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
    "visibility_timeout": 3600,
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
# A broker without memory refuses what a worker writes there: it tries again instead of ending.
CELERY_BROKER_CHANNEL_ERROR_RETRY = True
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_max": 0.2}
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_STORE_ERRORS_EVEN_IF_IGNORED = False
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TASK_DEFAULT_QUEUE = "bulk"
CELERY_TASK_ROUTES = {
    "subscribers.tasks.*": {"queue": "system"},
    "newsletter.tasks.dispatch_due": {"queue": "system"},
    "newsletter.tasks.sweep": {"queue": "system"},
}
CELERY_BEAT_SCHEDULE_FILENAME = str((EMBEDDED_DIR if EMBEDDED else Path(tempfile.gettempdir())) / "celerybeat-schedule")
CELERY_BEAT_SCHEDULE = {
    "dispatch-due": {"task": "newsletter.tasks.dispatch_due", "schedule": DISPATCH_SECONDS},
    "sweep": {"task": "newsletter.tasks.sweep", "schedule": SWEEP_SECONDS},
    "retain": {"task": "newsletter.tasks.retain", "schedule": RETENTION_SECONDS},
    "renew-related": {"task": "posts.tasks.renew_related", "schedule": DISPATCH_SECONDS},
}

# markdownx: its own views are public and store HTML, so they are never mounted; these names point at ours.
MARKDOWNX_URLS_PATH = f"/{ADMIN_PATH}/markdown/preview/"
MARKDOWNX_UPLOAD_URLS_PATH = f"/{ADMIN_PATH}/markdown/upload/"
MARKDOWNX_MARKDOWNIFY_FUNCTION = "posts.markdown.render"

LOG_LEVEL = env.str("LOG_LEVEL", "INFO")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "()": "subscribers.redaction.RedactingFormatter",
            "fmt": "{asctime} {levelname} {name} {message}",
            "style": "{",
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
}


def _menu(title: str, icon: str, model: str) -> dict[str, object]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{model}_changelist")}


# Shades of the green that the desk's own buttons have, from the lightest to the darkest.
GREENS = {
    50: "98% .012", 100: "95% .03", 200: "90% .06", 300: "84% .09", 400: "76% .11", 500: "68% .11",
    600: "47.5% .085", 700: "41% .075", 800: "35% .062", 900: "30% .05", 950: "22% .04",
}  # fmt: skip

UNFOLD = {
    "SITE_TITLE": "Masthead",
    "SITE_HEADER": "Masthead",
    "SITE_SYMBOL": "newspaper",
    "SITE_URL": "/",
    "SHOW_HISTORY": True,
    "COLORS": {"primary": {str(step): f"oklch({green} 175)" for step, green in GREENS.items()}},
    "ENVIRONMENT": "newsletter.guard.badge",
    "DASHBOARD_CALLBACK": "newsletter.desk.dashboard",
    "SIDEBAR": {
        "show_search": False,
        "navigation": [
            {
                "title": "Write",
                "items": [
                    _menu("Posts", "article", "posts_post"),
                    _menu("Issues", "mail", "newsletter_issue"),
                    _menu("Calendar", "calendar_month", "newsletter_slot"),
                    _menu("Preview groups", "groups", "newsletter_previewgroup"),
                    _menu("Featured", "push_pin", "posts_featuredpost"),
                    _menu("Tags", "sell", "posts_tag"),
                    _menu("Series", "format_list_numbered", "posts_series"),
                    _menu("Snippets", "content_paste", "posts_snippet"),
                ],
            },
            {
                "title": "Readers",
                "items": [
                    _menu("Subscribers", "group", "subscribers_subscriber"),
                    _menu("Suppressions", "block", "subscribers_suppression"),
                    _menu("Deliveries", "outgoing_mail", "newsletter_delivery"),
                    {
                        "title": "What happened to …",
                        "icon": "person_search",
                        "link": reverse_lazy("admin:newsletter_delivery_history"),
                    },
                    _menu("System mail", "outbox", "subscribers_systemmail"),
                    {
                        "title": "Import",
                        "icon": "upload",
                        "link": reverse_lazy("subscribers_imports"),
                        "permission": "subscribers.views.moving.may_import",
                    },
                    {
                        "title": "Export",
                        "icon": "download",
                        "link": reverse_lazy("subscribers_subscriber_export"),
                        "permission": "subscribers.views.moving.may_export",
                    },
                    {
                        "title": "Sign-up form",
                        "icon": "edit_note",
                        "link": reverse_lazy("embed"),
                        "permission": "subscribers.views.author.may_see",
                    },
                    {
                        "title": "Welcome mail",
                        "icon": "waving_hand",
                        "link": reverse_lazy("welcome"),
                        "permission": "subscribers.views.author.may_see",
                    },
                ],
            },
            {
                "title": "Set up",
                "items": [
                    _menu("Publication", "newspaper", "posts_publication"),
                    _menu("Redirects", "alt_route", "posts_redirect"),
                    _menu("People", "manage_accounts", "auth_user"),
                    {"title": "Your second factor", "icon": "passkey", "link": reverse_lazy("mfa_index")},
                    _menu("Audit log", "history", "posts_auditentry"),
                    {
                        "title": "Doctor",
                        "icon": "stethoscope",
                        "link": reverse_lazy("doctor"),
                        "permission": "newsletter.doctor_views.may_ask",
                    },
                ],
            },
        ],
    },
}
