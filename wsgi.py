"""The service, for gunicorn and for `flask --app wsgi run`."""

from flask_stream import create_app

app = create_app()
