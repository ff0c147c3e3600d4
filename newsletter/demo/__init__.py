"""The demo's publication: an invented technical newsletter with its posts, readers and past issues."""
