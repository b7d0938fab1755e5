"""How gunicorn runs the service: `gunicorn wsgi:app` reads this file by itself."""

from gevent import monkey

# Before anything else is imported: the gevent worker itself patches only after the fork.
monkey.patch_all()

from flask_stream.gunicorn import *  # noqa: E402, F403
from flask_stream.gunicorn import on_exit, on_starting  # noqa: E402, F401
