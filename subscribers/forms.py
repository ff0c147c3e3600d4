"""The forms that readers fill in."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.utils.translation import gettext_lazy as _

from posts.models import CONTROL_CHARACTERS
from subscribers import addresses, tokens

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


class SubscribeForm(forms.Form):
    """Sign-up: one field that a person sees, one that only a robot fills in, and a token of the day."""

    name = "subscribe"

    address = AddressField()
    website = forms.CharField(required=False, max_length=200)
    token = forms.CharField(max_length=64)
    source = forms.CharField(required=False, max_length=100)

    def clean_token(self) -> str:
        token = str(self.cleaned_data["token"])
        if not tokens.is_form_token(token, self.name):
            raise ValidationError(_("This form has grown too old: please send it once more."))
        return token

    @property
    def is_robot(self) -> bool:
        return bool(self.data.get("website"))


class AddressForm(forms.Form):
    """Ask for a link to the preferences."""

    address = AddressField()


class NameForm(forms.Form):
    name = forms.CharField(label=_("Your name"), required=False, max_length=100, validators=[PLAIN_NAME])
