"""Data sets of empty files, for the tests of their layouts."""


def plant(folder, *files):
    """Make empty files, and their folders."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder
