"""What we say: the publication, its posts and tags, and the posts that the front page features."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import zoneinfo
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVectorField
from django.core.exceptions import ValidationError
from django.core.signing import TimestampSigner
from django.core.validators import (
    MaxValueValidator,
    MinValueValidator,
    RegexValidator,
    validate_email,
)
from django.db import models, transaction
from django.db.models.functions import Now
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.text import slugify
from django.utils.translation import gettext_lazy as _
from simple_history.models import HistoricalRecords

from posts import cards, images, markdown, search, theme

CONTROL_CHARACTERS = RegexValidator(
    r"[\x00-\x08\x0a-\x1f\x7f\u0085\u2028\u2029]",
    _("Line breaks and control characters can't stand in a mail header: please remove them."),
    inverse_match=True,
)


PREVIEW_DAYS = 14
AUTOSAVED = "kept while typing"
REVISION_MINUTES = 10
# From so many headings and minutes on, a post shows its contents.
CONTENTS_HEADINGS, CONTENTS_MINUTES = 3, 4
CONTENTS_LEVELS = (2, 3)
RENDERED = ["body_html", "body_text", "derived_excerpt", "reading_minutes", "body_code", "headings", "language"]
DERIVED = [*RENDERED, "cover_copies", "tag_words"]
BATCH = 100  # posts that one transaction renders again


# What a reader's request was told of the publication; see posts/language.py.
KNOWN: ContextVar[Publication | None] = ContextVar("publication", default=None)


def preview_signer() -> TimestampSigner:
    return TimestampSigner(salt="posts.preview", sep=".")


def validate_time_zone(name: str) -> None:
    """Raise ValidationError unless `name` is an IANA time zone."""
    if name not in zoneinfo.available_timezones():
        raise ValidationError(
            _("“%(name)s” is not a time zone. Write it as Europe/London or America/New_York."),
            params={"name": name},
        )


def validate_social_links(text: str) -> None:
    """Raise ValidationError unless each line of `text` is a label and an http(s) address."""
    for line in filter(None, map(str.strip, text.splitlines())):
        label, _space, url = line.rpartition(" ")
        if not label or not url.startswith(("https://", "http://")):
            raise ValidationError(
                _("“%(line)s” is not a label and an address, such as: Mastodon https://example.social/@me"),
                params={"line": line},
            )


def validate_recommendations(text: str) -> None:
    """Raise ValidationError unless each line of `text` is a name, an http(s) address and perhaps a sentence."""
    for line in filter(None, map(str.strip, text.splitlines())):
        name, url, *_sentence = [part.strip() for part in line.split("|")] + [""]
        if not name or not url.startswith(("https://", "http://")):
            raise ValidationError(
                _("“%(line)s” is not written as: Name | https://address | one sentence"), params={"line": line}
            )


FRONT_PARTS = [
    ("featured", _("Featured posts")),
    ("latest", _("Latest posts")),
    ("topics", _("Topics")),
    ("about", _("About")),
    ("recommended", _("Recommended newsletters")),
]


def front_parts() -> list[str]:
    """Return the parts of the front page below its head, in the order that they have until the author chooses his."""
    return [name for name, _label in FRONT_PARTS]


class Publication(models.Model):
    """The one publication of this installation: identity, sender, and when its issue goes out."""

    class Weekday(models.IntegerChoices):
        MONDAY = 0, _("Monday")
        TUESDAY = 1, _("Tuesday")
        WEDNESDAY = 2, _("Wednesday")
        THURSDAY = 3, _("Thursday")
        FRIDAY = 4, _("Friday")
        SATURDAY = 5, _("Saturday")
        SUNDAY = 6, _("Sunday")

    class Note(models.TextChoices):
        NEVER = "never", _("Never")
        DAILY = "daily", _("Once a day")

    name = models.CharField(max_length=100, default="My newsletter", validators=[CONTROL_CHARACTERS])
    tagline = models.CharField(max_length=200, blank=True)
    byline = models.CharField(_("author"), max_length=100, blank=True, help_text=_("Who writes it."))
    about = models.TextField(blank=True, help_text=_("Markdown, shown on the page /about/."))
    avatar = models.ImageField(upload_to="avatar", blank=True)
    social_links = models.TextField(
        blank=True,
        validators=[validate_social_links],
        help_text=_("One a line: a label, a space, the address."),
    )
    accent_color = models.CharField(
        max_length=7,
        default="#0f6b5c",
        validators=[RegexValidator(r"^#[0-9a-fA-F]{6}\Z", _("Write the colour as #0f6b5c."))],
    )
    recommendations = models.TextField(
        _("recommended newsletters"),
        blank=True,
        validators=[validate_recommendations],
        help_text=_("One a line: Name | https://address | one sentence about it"),
    )
    front_parts = models.JSONField(_("parts of the front page"), default=front_parts, blank=True)
    logo = models.ImageField(upload_to="logo", blank=True, help_text=_("Stands at the head of every mail."))
    sender_name = models.CharField(max_length=100, blank=True, validators=[CONTROL_CHARACTERS])
    sender_address = models.EmailField(default="newsletter@example.com", validators=[validate_email])
    reply_to = models.EmailField(blank=True)
    postal_address = models.TextField(
        blank=True,
        help_text=_("Stands at the foot of every issue; the law asks for it, so nothing is sent without it."),
    )
    send_weekday = models.PositiveSmallIntegerField(choices=Weekday, default=Weekday.MONDAY)
    send_time = models.TimeField(default=dt.time(9, 0))
    time_zone = models.CharField(
        max_length=64, default="Europe/London", validators=[validate_time_zone], help_text=_("IANA name")
    )
    catch_up_hours = models.PositiveSmallIntegerField(
        default=12,
        validators=[MinValueValidator(1), MaxValueValidator(144)],
        help_text=_("A slot missed by more than this is never sent late by itself."),
    )
    language = models.CharField(max_length=10, choices=search.LANGUAGES, default="en")
    welcome = models.TextField(
        _("welcome mail"),
        blank=True,
        help_text=_("Markdown; goes to each new reader once he has confirmed. Empty: a short standard text."),
    )
    new_reader_note = models.CharField(
        _("note about new readers"),
        max_length=8,
        choices=Note,
        default=Note.NEVER,
        help_text=_("A mail to you about those who joined the day before; on a day without any there is none."),
    )
    # When the author walked through the first-run guide; empty: the desk leads there.
    set_up_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(pk=1), name="one_publication")]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        for name in ("about", "welcome"):
            try:
                markdown.validate(getattr(self, name))
            except ValidationError as error:
                raise ValidationError({name: error.messages}) from error

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.pk = 1
        super().save(*args, **kwargs)

    @classmethod
    def current(cls) -> Publication:
        """Return the publication, making it with its defaults on first use; a reader's request reads it once."""
        return KNOWN.get() or cls.objects.get_or_create(pk=1)[0]

    @property
    def card(self) -> cards.Card:
        """Return the picture that stands for the publication elsewhere; below its name stands where it is found."""
        return self.card_of(self.name, name=urlsplit(settings.SITE_URL).netloc, words=self.tagline)

    def card_of(self, title: str, *, name: str = "", words: str = "") -> cards.Card:
        """Return a card in the publication's dress; unless told otherwise it says whose and by whom it is."""
        foot = (name or self.name, words or self.byline)
        return cards.Card(title, *foot, self.accent_color, self.avatar.name or "")

    @property
    def image(self) -> dict[str, Any]:
        """Return the picture that stands for the publication elsewhere, as pages name it."""
        return self.card.described(reverse("posts:site_card", args=[self.card.fingerprint]))

    @property
    def zone(self) -> zoneinfo.ZoneInfo:
        return zoneinfo.ZoneInfo(self.time_zone)

    @property
    def links(self) -> list[tuple[str, str]]:
        """Return the social links as (label, address)."""
        lines = filter(None, map(str.strip, self.social_links.splitlines()))
        return [(label.strip(), url) for label, _space, url in (line.rpartition(" ") for line in lines)]

    @property
    def recommended(self) -> list[tuple[str, str, str]]:
        """Return the recommended newsletters as (name, address, sentence)."""
        lines = filter(None, map(str.strip, self.recommendations.splitlines()))
        parts = [[part.strip() for part in line.split("|", 2)] for line in lines]
        return [(name, url, " ".join(sentence)) for name, url, *sentence in parts]

    @property
    def parts(self) -> list[str]:
        """Return the parts of the front page in the author's order; names that nobody knows any more are left out."""
        return [name for name in dict.fromkeys(self.front_parts) if name in front_parts()]

    @property
    def sender(self) -> str:
        return self.sender_name or self.name

    @property
    def theme_url(self) -> str:
        """Return the address of the stylesheet that carries the accent colour."""
        return reverse("posts:theme", args=[theme.fingerprint(self.accent_color)])


class Tag(models.Model):
    name = models.CharField(max_length=60, unique=True)
    slug = models.SlugField(max_length=60, unique=True)
    offered = models.BooleanField(
        _("offered to readers"),
        default=False,
        db_default=False,
        help_text=_("Readers may choose it in their preferences, and then get issues of their topics alone."),
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.slug = self.slug or slugify(self.name)[:60]
        super().save(*args, **kwargs)

    def get_absolute_url(self) -> str:
        return reverse("posts:tag", args=[self.slug])


class Series(models.Model):
    """Posts that belong together and are read one after the other, in the order of their publication."""

    name = models.CharField(max_length=100, unique=True)
    slug = models.SlugField(max_length=100, unique=True)
    description = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering = ["name"]
        verbose_name_plural = _("series")

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.slug = self.slug or slugify(self.name)[:100]
        super().save(*args, **kwargs)

    def get_absolute_url(self) -> str:
        return reverse("posts:series", args=[self.slug])


class PostQuerySet(models.QuerySet["Post"]):
    def published(self) -> PostQuerySet:
        """Posts that the web may show to someone who has their address: public and unlisted.

        A scheduled post appears at its instant; that its status follows is beat's work, and may come later.
        """
        shown = [Post.Status.PUBLISHED, Post.Status.SCHEDULED]
        return self.filter(status__in=shown, published_at__lte=timezone.now()).exclude(
            visibility=Post.Visibility.EMAIL_ONLY
        )

    def listed(self) -> PostQuerySet:
        """Posts that lists, feeds, search and the sitemap show: published and public."""
        return self.published().filter(visibility=Post.Visibility.PUBLIC)

    def brief(self) -> PostQuerySet:
        """Posts as lists show them: the long columns stay in the database."""
        return self.defer("body", "body_html", "body_text", "body_code", "search", "search_head")

    def ready(self) -> PostQuerySet:
        """Posts that the author marked for the next issue."""
        return self.filter(ready=True).exclude(status=Post.Status.WITHDRAWN)

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete the posts, and the cards that were drawn for them."""
        owners = {str(pk) for pk in self.values_list("pk", flat=True)}
        deleted = super().delete()
        transaction.on_commit(partial(cards.drop, owners))
        return deleted

    delete.alters_data = delete.queryset_only = True  # type: ignore[attr-defined]  # as Django's own

    def render_again(self) -> int:
        """Make anew what is kept of each text, as another language or version has it; return of how many.

        Texts, dates and revisions stay as they are. Raises ValueError on a text that can't be rendered.
        """
        keys = list(self.values_list("pk", flat=True))
        for start in range(0, len(keys), BATCH):
            with transaction.atomic():
                posts = (
                    self.filter(pk__in=keys[start : start + BATCH])
                    .defer("search", "search_head")
                    .select_for_update(of=("self",))
                )
                for post in posts:
                    post.derive()
                Post.objects.bulk_update(posts, RENDERED)
        return len(keys)


class Post(models.Model):
    """A text written once: on the web at its address, in the mail as part of an issue, or both."""

    class Status(models.TextChoices):
        DRAFT = "draft", _("Draft")
        SCHEDULED = "scheduled", _("Scheduled")
        PUBLISHED = "published", _("Published")
        WITHDRAWN = "withdrawn", _("Withdrawn")

    class Visibility(models.TextChoices):
        PUBLIC = "public", _("Public")
        UNLISTED = "unlisted", _("Unlisted: only by its address")
        EMAIL_ONLY = "email_only", _("E-mail only")

    MOVES = {
        Status.DRAFT: {Status.SCHEDULED, Status.PUBLISHED},
        Status.SCHEDULED: {Status.DRAFT, Status.PUBLISHED},
        Status.PUBLISHED: {Status.WITHDRAWN},
        Status.WITHDRAWN: {Status.PUBLISHED},
    }
    # What the author types; a revision brings these back, and nothing that says where and when the post is shown.
    TEXTS = ("title", "subtitle", "body", "excerpt", "meta_description", "cover_alt")
    # What the editor's form holds: a change of any of these behind its back is a conflict.
    FORM_FIELDS = (*TEXTS, "slug", "cover", "canonical_url", "status", "visibility", "ready", "correction")

    title = models.CharField(max_length=200)
    subtitle = models.CharField(max_length=300, blank=True)
    slug = models.SlugField(
        max_length=200,
        unique=True,
        blank=True,
        error_messages={"unique": _("Another post has this address: choose a different slug.")},
    )
    body = models.TextField(blank=True, help_text=_("Markdown"))
    excerpt = models.TextField(blank=True, help_text=_("Left empty, it is taken from the text."))
    cover = models.ImageField(upload_to="covers/%Y", blank=True)
    cover_alt = models.CharField(_("cover's alt text"), max_length=300, blank=True)
    tags = models.ManyToManyField(Tag, blank=True, related_name="posts")
    series = models.ForeignKey(Series, on_delete=models.SET_NULL, null=True, blank=True, related_name="posts")
    correction = models.TextField(
        blank=True, help_text=_("What was wrong and is right now; stands above the text, in Markdown.")
    )
    corrected_at = models.DateTimeField(null=True, blank=True)
    canonical_url = models.URLField(blank=True, help_text=_("Where the text first appeared, if elsewhere."))
    meta_description = models.CharField(max_length=300, blank=True)
    status = models.CharField(max_length=10, choices=Status, default=Status.DRAFT)
    visibility = models.CharField(max_length=10, choices=Visibility, default=Visibility.PUBLIC)
    published_at = models.DateTimeField(null=True, blank=True, db_index=True)
    ready = models.BooleanField(_("ready for the next issue"), default=False)
    source = models.CharField(max_length=300, blank=True, editable=False, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    body_html = models.TextField(editable=False, default="")
    body_text = models.TextField(editable=False, default="")
    derived_excerpt = models.TextField(editable=False, default="")
    reading_minutes = models.PositiveSmallIntegerField(editable=False, default=1)
    # The names in the text's code, for search; its headings as [level, id, words]; the cover's size and smaller copies.
    body_code = models.TextField(editable=False, default="")
    # What search speaks, and the names of the tags, which a trigger keeps.
    language = models.CharField(max_length=10, editable=False, choices=search.LANGUAGES, default="en")
    tag_words = models.TextField(editable=False, default="")
    headings = models.JSONField(editable=False, default=list)
    cover_copies = models.JSONField(editable=False, default=dict)
    search_head = models.GeneratedField(
        expression=search.post_head(), output_field=SearchVectorField(), db_persist=True
    )
    search = models.GeneratedField(expression=search.post_vector(), output_field=SearchVectorField(), db_persist=True)

    objects = PostQuerySet.as_manager()
    history = HistoricalRecords(
        excluded_fields=["search", "search_head", *DERIVED],
        cascade_delete_history=True,
    )

    class Meta:
        ordering = ["-published_at", "-id"]
        indexes = [
            GinIndex(fields=["search"], name="post_search"),
            GinIndex(fields=["search_head"], name="post_search_head"),
            GinIndex(fields=["title"], opclasses=["gin_trgm_ops"], name="post_title_trgm"),
            # The site's version counts those whose instant has come, twice a second.
            models.Index(fields=["published_at"], condition=models.Q(status="scheduled"), name="post_scheduled"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=["draft", "withdrawn"]) | models.Q(published_at__isnull=False),
                name="published_has_date",
                violation_error_message=_("A scheduled or published post needs a date."),
            )
        ]

    def __str__(self) -> str:
        return self.title

    def get_absolute_url(self) -> str:
        return reverse("posts:post", args=[self.slug])

    @property
    def url(self) -> str:
        """Return the canonical absolute address."""
        return self.canonical_url or settings.SITE_URL + self.get_absolute_url()

    @property
    def description(self) -> str:
        """Return what search engines and previews say of the post."""
        return self.meta_description or self.summary

    @property
    def card(self) -> cards.Card | None:
        """Return the picture that stands for the post elsewhere where it has no cover."""
        return None if self.cover else Publication.current().card_of(self.title)

    @property
    def image(self) -> dict[str, Any]:
        """Return the picture that stands for the post elsewhere: its cover or, without one, a card with its title."""
        if card := self.card:
            return card.described(reverse("posts:card", args=[self.slug, card.fingerprint]))
        width, height = self.cover_size or (None, None)
        return {"url": settings.SITE_URL + self.cover.url, "alt": self.cover_alt, "width": width, "height": height}

    @property
    def preview_url(self) -> str:
        """Return an address that shows the post to whoever has it, published or not, for PREVIEW_DAYS."""
        return settings.SITE_URL + reverse("posts:preview", args=[preview_signer().sign(str(self.pk))])

    @classmethod
    def by_preview_token(cls, token: str) -> Post:
        """Return the post that a preview token names; raise BadSignature or DoesNotExist."""
        return cls.objects.get(pk=preview_signer().unsign(token, max_age=dt.timedelta(days=PREVIEW_DAYS)))

    @property
    def preview_until(self) -> dt.datetime:
        """Return until when an address that `preview_url` makes now is answered."""
        return timezone.now() + dt.timedelta(days=PREVIEW_DAYS)

    @property
    def summary(self) -> str:
        """Return the excerpt, given or derived from the text."""
        return self.excerpt or self.derived_excerpt

    @property
    def contents(self) -> list[dict[str, Any]]:
        """Return the headings that a long text shows as its contents, each with those below it; none of a short one."""
        shown = [heading for heading in self.headings if heading[0] in CONTENTS_LEVELS]
        if len(shown) < CONTENTS_HEADINGS or self.reading_minutes < CONTENTS_MINUTES:
            return []
        found: list[dict[str, Any]] = []
        for level, anchor, words in shown:
            entry: dict[str, Any] = {"id": anchor, "words": words, "below": []}
            (found[-1]["below"] if found and level == CONTENTS_LEVELS[1] else found).append(entry)
        return found

    @property
    def cover_srcset(self) -> str:
        """Return the addresses of the cover's copies with their widths, for an `img`; empty where there are none."""
        kept = self.cover_copies
        return images.srcset(kept["name"], kept["width"], kept["copies"]) if self.cover_size else ""

    @property
    def cover_size(self) -> tuple[int, int] | None:
        """Return the cover's width and height in pixels."""
        kept = self.cover_copies
        return (kept["width"], kept["height"]) if kept and kept["name"] == self.cover.name else None

    @property
    def version(self) -> str:
        """Return a fingerprint of what the editor's form holds: another one means that somebody changed it meanwhile.

        Made of the content and not of a date, so it also sees what was changed by an UPDATE around `save`.
        """
        values = [str(getattr(self, name)) for name in self.FORM_FIELDS]
        values.append(str(self.published_at.timestamp()) if self.published_at else "")
        tags = sorted(self.tags.values_list("pk", flat=True)) if self.pk else []
        return hashlib.sha256(json.dumps([values, tags]).encode()).hexdigest()[:32]

    @property
    def is_kept_as_typed(self) -> bool:
        """Tell whether what is typed may be kept at once: nobody sees the post, and no issue is promised it."""
        return self.status == self.Status.DRAFT and not self.ready

    def can_move(self, status: str) -> bool:
        return status in self.MOVES[self.Status(self.status)]

    def publish(self, *, at: dt.datetime | None = None) -> None:
        """Put the post on the web, keeping an earlier date of publication."""
        self.status = self.Status.PUBLISHED
        self.published_at = at or self.published_at or timezone.now()
        self.save()

    def keep_typed(self, texts: dict[str, str]) -> None:
        """Keep what is typed into a draft; its revision grows for a while, so that a day makes dozens and not hundreds.

        Raises ValidationError on texts that can't be kept.
        """
        if self.slug in self._derived_slugs() and not self.published_at:
            self.slug = ""  # a title is typed letter by letter: its address follows
        for name, text in texts.items():
            setattr(self, name, text)
        self.full_clean(exclude=["slug"] if not self.slug else [])
        self._change_reason = AUTOSAVED
        with transaction.atomic():
            self._forget_last_typed()
            self.save()

    def restore(self, revision: Any, *, reason: str) -> None:
        """Bring back the texts of a revision, as a new one: nothing is lost, and nothing becomes public by it."""
        for name in self.TEXTS:
            setattr(self, name, getattr(revision, name))
        self._change_reason = reason
        self.save()

    def _derived_slugs(self) -> set[str]:
        """Return the addresses that the post may have been given by its title alone."""
        base = slugify(self.title)[:190] or "post"
        return {base, *(f"{base}-{n}" for n in range(2, 10))}

    def _forget_last_typed(self) -> None:
        """Drop the newest revision where it was kept by itself in the same ten minutes: the next takes its place."""
        now = timezone.now()
        since = now - dt.timedelta(minutes=now.minute % REVISION_MINUTES, seconds=now.second)
        last = self.history.first() if self.pk else None
        if last and last.history_change_reason == AUTOSAVED and last.history_date >= since:
            last.delete()

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Derive HTML, text and reading time; keep a changed address of a published post as a redirect."""
        self.slug = self.slug or self._free_slug()
        self._date_correction()
        self._copy_cover()
        self.derive()
        with transaction.atomic():
            self._keep_old_address()
            super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """Delete the post, and the card that was drawn for it."""
        owner = str(self.pk)
        deleted = super().delete(*args, **kwargs)
        transaction.on_commit(partial(cards.drop, {owner}))
        return deleted

    def derive(self) -> None:
        """Make of the Markdown what pages and search show; raise ValueError on a text that can't be rendered.

        What is said beside the author's words is in the publication's language, whoever saves.
        """
        self.language = Publication.current().language
        with translation.override(self.language):
            rendered = markdown.render_post(self.body)
        self.body_html, self.body_text, self.derived_excerpt = rendered.html, rendered.text, rendered.excerpt
        self.reading_minutes, self.headings = rendered.reading_minutes, rendered.headings
        self.body_code = search.names_in(rendered.code)

    def _date_correction(self) -> None:
        """Let a correction have a date and no date stand without one."""
        self.corrected_at = (self.corrected_at or timezone.now()) if self.correction else None

    def _copy_cover(self) -> None:
        """Store a new cover now and make its copies: its size and their names are saved along with it."""
        if self.cover and not self.cover._committed:  # type: ignore[attr-defined]  # Django's own
            self.cover.save(str(self.cover.name), self.cover.file, save=False)
        if self.cover and self.cover_copies.get("name") != self.cover.name:
            self.describe_cover()
        elif not self.cover:
            self.cover_copies = {}

    def describe_cover(self) -> None:
        """Make the copies of the cover that are missing, and keep its size and their names."""
        with suppress(OSError, ValidationError):  # a cover that is away or broken is shown as it is
            images.make_copies(str(self.cover.name))
        self.cover_copies = images.describe(str(self.cover.name))

    def clean(self) -> None:
        if self.status == self.Status.SCHEDULED and not self.published_at:
            raise ValidationError({"published_at": _("Say when it goes on the web: a scheduled post needs a date.")})
        if self.status == self.Status.PUBLISHED and not self.published_at:
            self.published_at = timezone.now()
        self._check_body()
        if self.cover and not self.cover_alt:
            raise ValidationError({"cover_alt": _("Say what the cover shows, for those who can't see it.")})
        self._check_move()

    def _check_body(self) -> None:
        for name in ("body", "correction"):
            try:
                markdown.validate(getattr(self, name))
            except ValidationError as error:
                raise ValidationError({name: error.messages}) from error

    def _check_move(self) -> None:
        old = Post.objects.filter(pk=self.pk).values_list("status", flat=True).first()
        if old and old != self.status and self.status not in self.MOVES[self.Status(old)]:
            raise ValidationError(
                {"status": _("A post that is %(old)s can't become %(new)s.") % {"old": old, "new": self.status}}
            )

    def _free_slug(self) -> str:
        base = slugify(self.title)[:190] or "post"
        taken = set(Post.objects.filter(slug__startswith=base).exclude(pk=self.pk).values_list("slug", flat=True))
        return next(slug for n in range(1, 10**6) if (slug := base if n == 1 else f"{base}-{n}") not in taken)

    def _keep_old_address(self) -> None:
        Redirect.objects.filter(path=self.get_absolute_url()).delete()
        old = Post.objects.filter(pk=self.pk).exclude(slug=self.slug).first() if self.pk else None
        if old and old.published_at:
            Redirect.objects.update_or_create(path=old.get_absolute_url(), defaults={"post": self})


class Redirect(models.Model):
    """An old address of a post: a changed slug or an alias that came along with an import."""

    path = models.CharField(max_length=500, unique=True)
    post = models.ForeignKey(Post, on_delete=models.CASCADE, related_name="redirects")

    def __str__(self) -> str:
        return self.path


class FeaturedPost(models.Model):
    """A post pinned on the front page, in the author's order."""

    post = models.OneToOneField(Post, on_delete=models.CASCADE, related_name="featured")
    position = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ["position", "id"]

    def __str__(self) -> str:
        return str(self.post)


class RelatedPosts(models.Model):
    """Which posts are the most like one, the most alike first: worked out outside of any request (see `related`).

    A hint: whether one of them may be shown is asked when it is.
    """

    post = models.OneToOneField(Post, on_delete=models.CASCADE, primary_key=True, related_name="related")
    others = ArrayField(models.BigIntegerField(), default=list)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.post_id}: {self.others}"


class SiteVersion(models.Model):
    """A number in one row that grows whenever something changes that pages show; triggers count it up.

    They fire as the changing transaction commits (see DESIGN.md); posts.siteversion reads it.
    """

    number = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(pk=1), name="one_site_version")]

    def __str__(self) -> str:
        return str(self.number)


class Snippet(models.Model):
    """A named piece of Markdown that the editor puts into a text."""

    name = models.CharField(max_length=60, unique=True)
    body = models.TextField(help_text=_("Markdown"))

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class AuditEntry(models.Model):
    """Who did what and when, for acts that others have to answer for; a trigger lets no row be changed or removed."""

    at = models.DateTimeField(db_default=Now(), editable=False, db_index=True)
    # A name and no key: it has to outlive the account. Empty: Masthead did it by itself.
    actor = models.CharField(max_length=150, blank=True)
    act = models.CharField(max_length=60, help_text=_("Such as issue.schedule"))
    subject = models.CharField(max_length=250, blank=True)
    detail = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["-at", "-id"]
        verbose_name_plural = _("audit log")

    def __str__(self) -> str:
        return f"{self.act} {self.subject}"
