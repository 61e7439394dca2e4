"""A server's life without a model: its answers come from a recording."""

from pathlib import Path

from tinsmith.backend.listening import listen, listening_socket, stop_when_told
from tinsmith.backend.logs import configure_logs
from tinsmith.backend.wire.traffic.replay import make_replay_app
from tinsmith.settings import ServerSettings


def serve_recording(settings: ServerSettings, path: Path) -> None:
    """Answer from the recording at `path` until SIGTERM or SIGINT."""
    stop_when_told()
    configure_logs(settings.log_format, settings.log_level, settings.api_key)
    app = make_replay_app(path, settings.api_key)
    with listening_socket(settings) as listener:
        listen(app, listener, f"what {path} recorded", lambda: None)
