"""What a server allows. Imports neither torch nor the packages of the extra `serve`."""

from dataclasses import dataclass, field, fields

from mmchat.errors import UserError
from mmchat.image_limits import ImageLimits

MIB = 1 << 20
BODY_SILENCES = 10
"""A body that arrives a byte at a time ends after this many times `body_seconds`."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server. Whatever exceeds one is refused with its name (`docs/guides/serving.md` lists them).

    Raises:
        UserError: A limit is less than 1.
    """

    body_bytes: int = 20 * MIB
    """Largest body of one request."""
    body_seconds: float = 30.0
    """Longest silence while a body arrives; all of it may take `BODY_SILENCES` times as long."""
    buffered_bytes: int = 256 * MIB
    """Bodies of all requests that are held at once."""
    images: int = 8
    """Images of one request."""
    pixels: int = 50_000_000
    """Width x height of all images of one request together."""
    text_characters: int = 400_000
    """Text of one request."""
    new_tokens: int = 1024
    """Longest answer, in tokens. Also the default of requests that name none."""
    choices: int = 8
    """Answers to one request (`n`, times the prompts of a completion)."""
    in_flight: int = 128
    """Answers that are queued or being made, over all requests."""
    connections: int = 1024
    """Open connections."""
    requests_per_minute: float | None = None
    """Of one key, or of all callers together if no key is needed. None: no limit."""
    drain_seconds: float = 30.0
    """After SIGTERM: longest time that running requests get."""

    @property
    def of_images(self) -> ImageLimits:
        """Those of the images of one request."""
        return ImageLimits(self.images, self.body_bytes, self.pixels, self.pixels)

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            # A drain of no seconds is a stop at once, which is allowed.
            if value is not None and (value < 0 if one.name == "drain_seconds" else value <= 0):
                raise UserError(f"the limit {one.name} must be above 0, found {value}")


@dataclass(frozen=True)
class ServeSettings:
    """A server, apart from its model."""

    name: str
    """What requests call the model."""
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    """API keys. Empty: no key is needed, which is allowed on loopback only."""
    allow_image_urls: bool = False
    """Fetch images from http(s) addresses."""
    temperature: float = 0.0
    """Of requests that name none. 0 is greedy."""
    limits: Limits = Limits()
