"""Whether all mail is redirected, for the banner that the admin shows meanwhile."""

from django import template
from django.conf import settings

register = template.Library()


@register.simple_tag
def test_mode_address() -> str:
    return str(settings.TEST_MODE_ADDRESS)
