"""Run the examples in docstrings."""

import doctest
from types import ModuleType


def run_examples(module: ModuleType, *names: str) -> None:
    """Run the examples of these objects of a module, in order and as one session."""
    tests = {test.name.removeprefix(f"{module.__name__}."): test for test in doctest.DocTestFinder().find(module)}
    session = dict(vars(module))
    runner = doctest.DocTestRunner()
    for name in names:
        assert tests[name].examples, f"{name} has no example"
        tests[name].globs = session
        runner.run(tests[name], clear_globs=False)
    assert runner.summarize().failed == 0
