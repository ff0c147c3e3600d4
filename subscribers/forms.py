"""The forms that readers fill in."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from posts.models import CONTROL_CHARACTERS, Publication, Tag
from posts.search import LANGUAGES
from subscribers import addresses, tokens
from subscribers.models import Subscriber

PLAIN_NAME = RegexValidator(
    CONTROL_CHARACTERS.regex, _("Please leave out line breaks and control characters."), inverse_match=True
)


class AddressField(forms.EmailField):
    """One e-mail address; cleaned, it is as typed but known to be deliverable in form."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=254, label=_("Your e-mail address"), **kwargs)
        self.widget.attrs.update({"autocomplete": "email", "inputmode": "email", "placeholder": "you@example.com"})

    def clean(self, value: Any) -> str:
        address = str(super().clean(value))
        try:
            addresses.canonical(address)
        except addresses.InvalidAddress as error:
            raise ValidationError(
                _("This does not look like an address that mail can reach: please check it.")
            ) from error
        return address


class Label(forms.CharField):
    """What a page says of itself: cut to its length, and never a reason to refuse a reader."""

    def __init__(self) -> None:
        super().__init__(required=False)

    def clean(self, value: Any) -> str:
        return re.sub(CONTROL_CHARACTERS.regex, "", str(value or "")).strip()[:100]


class SubscribeForm(forms.Form):
    """Sign-up: one field that a person sees, one that only a robot fills in, a token, and where he comes from."""

    name = "subscribe"
    wording = _("Send me each issue by e-mail. I can leave at any time.")  # shown with the form, kept with the consent

    address = AddressField()
    website = forms.CharField(required=False)
    token = forms.CharField(max_length=64)
    challenge = forms.CharField(required=False, max_length=64)
    source = Label()
    utm_source = Label()
    utm_medium = Label()
    utm_campaign = Label()
    utm_term = Label()
    utm_content = Label()

    def clean_token(self) -> str:
        token = str(self.cleaned_data["token"])
        if not tokens.is_form_token(token, self.name):
            raise ValidationError(_("This form has grown too old: please send it once more."), "old")
        if tokens.is_too_quick(token):
            raise ValidationError(_("That was very quick. Please send it once more."), "quick")
        return token

    @property
    def is_robot(self) -> bool:
        return bool(self.data.get("website"))

    @property
    def campaign(self) -> dict[str, str]:
        """Return what the campaign's fields say, those left out that say nothing; they are never invalid."""
        said = {name: field.clean(self.data.get(name)) for name, field in self.fields.items() if name in CAMPAIGN}
        return {name: value for name, value in said.items() if value}

    @property
    def token_again(self) -> str:
        """Return the token that the form shown again may keep: one that only came too early."""
        return str(self.data["token"]) if self.has_error("token", "quick") else ""


CAMPAIGN = [name for name in SubscribeForm.base_fields if name.startswith("utm_")]


class EmbedForm(forms.Form):
    """What the author wants to know of the readers who come by a form on another site."""

    source = forms.CharField(max_length=100, required=False, validators=[PLAIN_NAME])
    utm_campaign = forms.CharField(max_length=100, required=False, validators=[PLAIN_NAME])

    @property
    def said(self) -> dict[str, str]:
        return {name: value for name, value in self.cleaned_data.items() if value}


class AddressForm(forms.Form):
    """Ask for a link to the preferences."""

    address = AddressField()


EVERY, MONTHLY = Subscriber.Frequency.values


class PreferencesForm(forms.Form):
    """What a reader wants, and how he is spoken to."""

    name = forms.CharField(label=_("Your name"), required=False, max_length=100, validators=[PLAIN_NAME])
    frequency = forms.ChoiceField(
        label=_("How often"),
        choices=[(EVERY, _("Every issue")), (MONTHLY, _("A digest once a month"))],
        widget=forms.RadioSelect,
    )
    topics = forms.TypedMultipleChoiceField(label=_("Topics"), required=False, coerce=int)
    language = forms.ChoiceField(label=_("Language of these pages and of mail about them"), required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["name"].widget.attrs["autocomplete"] = "name"
        offered = Tag.objects.filter(offered=True).values_list("pk", "name")
        self.fields["topics"].choices = list(offered)  # type: ignore[attr-defined]  # a choice field has them
        self.fields["topics"].widget = forms.CheckboxSelectMultiple(choices=list(offered))
        if not offered:
            del self.fields["topics"]
        own = dict(LANGUAGES)[Publication.current().language]
        automatic = _("As the newsletter: %(language)s") % {"language": own}
        self.fields["language"].choices = [("", automatic), *LANGUAGES]  # type: ignore[attr-defined]  # as above

    @classmethod
    def of(cls, subscriber: Subscriber) -> PreferencesForm:
        """Return the form as it stands for a reader."""
        return cls(initial={name: getattr(subscriber, name) for name in cls.base_fields})


class NewAddressForm(forms.Form):
    """Where a reader wants to be written to."""

    new_address = AddressField()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["new_address"].label = _("Your new address")


class PauseForm(forms.Form):
    """How long nothing is to be sent: some weeks, or until a date."""

    WEEKS = (2, 4, 8)
    MOST = dt.timedelta(days=366)

    weeks = forms.TypedChoiceField(choices=[(n, n) for n in WEEKS], coerce=int, required=False, empty_value=None)
    until = forms.DateField(
        label=_("Until a date of your own"), required=False, widget=forms.DateInput(attrs={"type": "date"})
    )

    def clean_until(self) -> dt.date | None:
        date: dt.date | None = self.cleaned_data["until"]
        today = timezone.now().date()
        if date and not today < date <= today + self.MOST:
            raise ValidationError(_("Please choose a day to come, within a year."))
        return date

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if not self.errors and not data.get("weeks") and not data.get("until"):
            self.add_error("until", _("Please choose the day from which mail may come again."))
        return data

    @property
    def end(self) -> dt.datetime:
        """Return the midnight, where the publication is, with which the pause that was chosen ends."""
        zone = Publication.current().zone
        weeks, date = self.cleaned_data["weeks"], self.cleaned_data["until"]
        if weeks:
            date = timezone.now().astimezone(zone).date() + dt.timedelta(weeks=weeks)
        return dt.datetime.combine(date, dt.time(), tzinfo=zone)
