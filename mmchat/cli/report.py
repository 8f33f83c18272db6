def add_commands(add) -> None:
    pass
