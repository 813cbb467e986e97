# Appended: what a student's own profile appends is loaded as well, and what it sets wins.
c = get_config()  # noqa: F821 - given by traitlets
c.InteractiveShellApp.extensions.append("pytorch_spawner_standby.cells")
