"""torch.compile of the blocks of towers and language model, one at a time.

Equal blocks share a compilation, which starts a run sooner than compiling a whole model. Lengths are dynamic. Where a
block cannot be traced (packed attention loops over samples) torch splits it.
"""

from torch import nn

from mmchat.training.config import Part


def compile_parts(model: nn.Module, parts: list[Part]) -> None:
    """Compile the blocks of these parts, in place; names of parameters stay. They compile in their first forward."""
    for part in parts:
        modules = [tower.backbone for tower in model.towers] if part == "towers" else [model.get_submodule(part)]
        for block in (block for module in modules for block in blocks_of(module)):
            block.compile(dynamic=True)


def run_as_written(model: nn.Module) -> None:
    """Undo `compile_parts`: what is compared on the CPU at the end of a run is not worth a compilation."""
    for module in model.modules():
        module._compiled_call_impl = None  # where torch's `Module.compile` keeps the result


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The equal blocks of a transformer: its outermost list of modules of one class; itself without such a list."""
    for inner in module.modules():
        if isinstance(inner, nn.ModuleList) and len({type(block) for block in inner}) == 1:
            return list(inner)
    return [module]
