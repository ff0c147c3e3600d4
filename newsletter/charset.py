"""Every request is read as UTF-8, whatever it says of itself.

Django looks for a codec of the name that Content-Type's charset gives. Some codecs are none for text, and with those it
fails before any middleware could help.
"""

from collections.abc import Iterable

from posts.pagecache import Application, Environ, StartResponse


def always_utf8(application: Application) -> Application:
    """Return the application without the charset that a visitor claims; an upload's boundary stays."""

    def reading(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        kind, *parameters = environ.get("CONTENT_TYPE", "").split(";")
        kept = [each for each in parameters if not each.strip().lower().startswith("charset")]
        environ["CONTENT_TYPE"] = ";".join([kind, *kept])
        return application(environ, start_response)

    return reading
