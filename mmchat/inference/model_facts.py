"""What a loaded assistant is, in a few facts for people."""

from dataclasses import dataclass

from mmchat.inference.generator import Generator
from mmchat.model.context import context_length


@dataclass(frozen=True)
class ModelFacts:
    """The parts of an assistant."""

    parameters: int
    """All of them, towers included."""
    towers: tuple[str, ...]
    """Family and input side of each tower."""
    projectors: tuple[str, ...]
    language_model: str
    """Its type and shape."""
    template: str
    fit: str
    """How an image becomes views (`Preprocessing.fit`) of the first tower."""
    slots_per_view: int
    context: int | None
    """Tokens of prompt and answer; None without a limit."""

    @property
    def summary(self) -> str:
        """One line."""
        towers = " + ".join(self.towers)
        projectors = " + ".join(dict.fromkeys(self.projectors))
        context = "no limit of context" if self.context is None else f"context of {self.context:,} tokens"
        return (
            f"{towers} → {projectors} → {self.language_model} · {readable(self.parameters)} parameters · "
            f"{self.slots_per_view:,} slots per view · {context}"
        )


def model_facts(generator: Generator) -> ModelFacts:
    """The facts about a generator's model."""
    config, specs = generator.model.config, generator.processor.image_processor.specs
    text = config.text_config
    sides = [f"at most {spec.tokens} patches" if spec.native else f"{spec.image_size} px" for spec in specs]
    return ModelFacts(
        parameters=sum(one.numel() for one in generator.model.parameters()),
        towers=tuple(f"{tower['family']} {side}" for tower, side in zip(config.towers, sides, strict=True)),
        projectors=tuple(config.projectors),
        language_model=f"{text.model_type} {text.num_hidden_layers} x {text.hidden_size}",
        template=config.template,
        fit=specs[0].preprocessing.fit if specs else "",
        slots_per_view=generator.processor.image_tokens,
        context=context_length(text),
    )


def readable(count: int) -> str:
    """A count with two or three digits: 1,234,567 is "1.23 M"."""
    for size, unit in ((10**9, " B"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
