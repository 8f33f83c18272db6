"""A server process over an assistant without a model: `python -m tests.serving.fake_server PORT PACE DRAIN`."""

import sys

from mmchat.command_line.errors import reporting
from mmchat.serving.server import serve
from mmchat.serving.settings import Limits, ServeSettings
from tests.serving.fakes import FakeAssistant

if __name__ == "__main__":
    port, pace, drain = sys.argv[1:4]
    settings = ServeSettings("tiny", port=int(port), limits=Limits(drain_seconds=float(drain)))
    with reporting():
        serve(settings, lambda: FakeAssistant(float(pace)), say=lambda line: print(line, flush=True))
