"""The part of OpenAI's dialect that is spoken here, as pydantic models. Unknown parameters are refused, never ignored.

Types are strict: the text "0.5" is refused as a number. What a client may send without a change of meaning (`user`,
`tools: []`, `presence_penalty: 0`) is declared with the only value that it may have.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

MOST_MESSAGES = 1000
MOST_PARTS = 1000
"""Parts of one message."""
MOST_CHOICES = 128
"""OpenAI's own limit of `n`; a server's is lower."""
MOST_STOPS = 16


def _is_text(text: str) -> str:
    """JSON can write halves of surrogate pairs, which no tokenizer can read."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must be text; it holds half of a surrogate pair")
    return text


ValidText = Annotated[str, AfterValidator(_is_text)]
Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[list[Any], Field(max_length=0)]
NoEntries = Annotated[dict[str, Any], Field(max_length=0)]
Stop = Annotated[ValidText, StringConstraints(min_length=1, max_length=256)]


class Strict(BaseModel):
    """No unknown keys, no conversions of types, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


# Messages


class TextPart(Strict):
    type: Literal["text"]
    text: ValidText


class ImageUrl(Strict):
    url: str = Field(description="`data:image/png;base64,...`, or an http(s) address if the server allows them.")
    detail: Literal["auto"] | None = Field(None, description="The model decides how much it sees of an image.")


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


def _kind_of_part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return "<image>" if kind == "image_url" else "<text>"


def _kind_of_content(content: Any) -> str:
    return "<parts>" if isinstance(content, list) else "<string>"


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image>")], Discriminator(_kind_of_part)
]
Parts = Annotated[list[Part], Field(max_length=MOST_PARTS)]
Content = Annotated[
    Annotated[ValidText, Tag("<string>")] | Annotated[Parts, Tag("<parts>")], Discriminator(_kind_of_content)
]


class Message(Strict):
    """One turn. The last four keys are what OpenAI's client sends back with an answer of its own."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="`developer` is `system`.")
    content: Content
    refusal: None = None
    annotations: Nothing | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None


# Requests


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="A last event without choices has the usage.")


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    name: str
    schema_: dict[str, Any] = Field(alias="schema", description="The answer fits it, unless its length ends it.")
    description: str | None = None
    strict: bool | None = Field(None, description="Accepted, without effect: the answer always fits.")


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


def _kind_of_format(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("json_object", "json_schema") else "<text>"


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    Discriminator(_kind_of_format),
]


class Sampling(Strict):
    """What both kinds of requests share."""

    model: str
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Number of answers.")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, description="Not OpenAI's: sample from the k most likely tokens; 0 is all.")
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="Not OpenAI's: as in transformers.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = Field(
        None, description="The text ends before the first of these."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Accepted, without effect.")
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: NoEntries | None = None


class ChatRequest(Sampling):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Needs logprobs: true.")
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    parallel_tool_calls: bool | None = Field(None, description="Accepted, without effect: there are no tools.")
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: dict[str, str] | None = Field(None, description="Accepted, without effect.")


class CompletionRequest(Sampling):
    prompt: ValidText | Annotated[list[ValidText], Field(min_length=1, max_length=MOST_CHOICES)] = Field(
        description="Texts to continue. Token ids are not accepted."
    )
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Only n itself.")
    echo: Literal[False] | None = None
    suffix: None = None


# Responses


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="Tokens whose keys and values were there already.")


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    error: ErrorDetail


FinishReason = Literal["stop", "length"]


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Natural logarithms, from the model's logits before temperature and other settings."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mmchat"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Status(BaseModel):
    status: str


WHY_REFUSED = {
    "presence_penalty": "only 0 is supported; repetition_penalty is",
    "frequency_penalty": "only 0 is supported; repetition_penalty is",
    "logit_bias": "a bias on tokens is not supported",
    "tools": "tools are not supported",
    "tool_choice": "tools are not supported",
    "tool_calls": "tools are not supported",
    "functions": "tools are not supported",
    "function_call": "tools are not supported",
    "modalities": "only ['text'] is supported",
    "audio": "audio is not supported",
    "echo": "the prompt is not repeated; only false is supported",
    "suffix": "text cannot be inserted",
    "store": "nothing is stored; only false is supported",
    "detail": "only 'auto' is supported; the model decides how much it sees of an image",
    "name": "names of speakers are not supported",
}
"""Parameter -> why another value than its declared one is refused."""
