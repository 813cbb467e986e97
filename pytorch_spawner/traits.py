"""The settings of PyTorchSpawner: traits with their help, defaults and checks; no behaviour.

They are a base class of their own so that a page of the reference is written from it.
"""

from __future__ import annotations

from typing import Any

from dockerspawner import DockerSpawner
from traitlets import (
    Bool,
    Dict,
    Enum,
    Float,
    Integer,
    List,
    TraitError,
    Tuple,
    Unicode,
    Union,
    default,
    validate,
)

from pytorch_spawner.core import course_data, identity


class LabTraits(DockerSpawner):  # type: ignore[misc]
    """Everything that ``c.PyTorchSpawner`` can be told beside DockerSpawner's own settings."""

    hub_id = Unicode(
        "lab",
        config=True,
        help="""
        Name of this hub on its Docker Engine, 1 to 32 characters of ``[a-z0-9-]``. Default: "lab".

        It is in the name and in the label of every container and volume, so two hubs on one engine
        need two names. Do not change it while servers run: they would no longer be found.

        Example: ``c.PyTorchSpawner.hub_id = "physics"``
        """,
    )

    ledger_url = Unicode(
        "sqlite:///pytorch-spawner.sqlite",
        config=True,
        help="""
        SQLAlchemy URL of the ledger: who has which uid, who holds which GPU, each start's journal.

        SQLite in the hub's working directory by default; PostgreSQL by its URL. Back it up with
        the hub's own database.

        Example: ``c.PyTorchSpawner.ledger_url = "postgresql+psycopg://lab@db/lab"``
        """,
    )

    inventory = List(
        Dict(),
        config=True,
        help="""
        GPUs to give out, as a list of mappings. Empty (default): ask the NVIDIA driver (NVML).

        Keys: ``uuid`` (required), ``index``, ``name``, ``memory_mib``, ``compute_capability``,
        ``pool``, ``cdi_name`` (default ``nvidia.com/gpu=<uuid>``), ``is_simulated``, ``mode``
        ("exclusive", "shared:N"), ``mig_profile``, ``numa_node``, ``links``. A static list
        serves a hub that runs apart from its engine, and labs without a GPU: devices are injected
        through CDI like real ones.

        Example: ``c.PyTorchSpawner.inventory = [{"uuid": "GPU-…", "name": "A100", "pool": "ml"}]``
        """,
    )

    images = Dict(
        Unicode(),
        config=True,
        help="""
        Images a start may choose: display name to image reference; the first is the default.

        Empty (default): only ``image``. A name or reference that is not in this list is refused,
        by form, query and REST alike.

        Example: ``c.PyTorchSpawner.images = {"PyTorch 2.13": "pytorch-spawner/lab:cpu"}``
        """,
    )

    default_gpus = Integer(
        1,
        min=0,
        config=True,
        help="""
        GPUs that a start gets that does not say how many. Default: 1, or 0 in a lab without GPUs.

        Example: ``c.PyTorchSpawner.default_gpus = 0``
        """,
    )

    max_gpus = Integer(
        1,
        min=0,
        config=True,
        help="""
        Most GPUs that one server may hold, bounded by what the lab has. Default: 1.

        With ``group_overrides`` some groups may hold more. What is everybody's (grants, GPUs and
        how the queue is kept) stays as configured, whatever an override says of it.

        Example: ``c.PyTorchSpawner.max_gpus = 4``
        """,
    )

    on_busy = Enum(
        ["queue", "cpu", "fail"],
        "queue",
        config=True,
        help="""
        What a start does that finds every GPU in use and does not say itself (option ``on_busy``):
        ``"queue"`` (default) waits on the pending page; ``"cpu"`` starts the server without a GPU
        and says so; ``"fail"`` answers at once.

        Example: ``c.PyTorchSpawner.on_busy = "cpu"``
        """,
    )

    grants = List(
        Dict(),
        [{"id": "everyone", "to": "everyone", "count": 64}],
        config=True,
        help="""
        Who may have which GPUs, beside the grants in the ledger (``pytorch-spawner grants``).
        Default: everyone may have any number of GPUs (``max_gpus`` bounds one server). Empty: only
        the ledger's grants.

        Keys: ``id``, ``to`` ("user", "group", "everyone"), ``subject``, ``pool`` or ``gpus``
        (UUIDs, then reserved for it), ``count`` (most that one person holds; default: the person's
        ``max_gpus``; 64 means any number), ``share`` ("any",
        "whole", "slot", "mig:<profile>"), ``priority`` (-100 to 100), ``weekly_gpu_hours``,
        ``max_lease_s``, ``valid_from``, ``valid_until``, ``images``. A JupyterHub group gives a
        grant too, by its property ``pytorch_spawner_grant`` with the same keys.

        Example: ``c.PyTorchSpawner.grants = [{"to": "group", "subject": "cv", "pool": "a100"}]``
        """,
    )

    preference = Enum(
        ["pack", "spread", "largest", "index"],
        "pack",
        config=True,
        help="""
        Which of several free GPUs is given: ``"pack"`` (default) the smallest that will do and the
        fullest shared one, ``"spread"`` the emptiest, ``"largest"`` the one with most memory,
        ``"index"`` the first.

        Example: ``c.PyTorchSpawner.preference = "spread"``
        """,
    )

    patience_s = Float(
        4 * 3600,
        min=0,
        config=True,
        help="""
        Seconds in the queue after which a start is overtaken by nobody any more, whatever their
        priority. Default: 14400 (4 hours).

        Example: ``c.PyTorchSpawner.patience_s = 1800``
        """,
    )

    class_early_s = Float(
        600,
        min=0,
        max=900,
        config=True,
        help="""
        Seconds before a class begins from which on its seats are kept for its students. Default:
        600. At most 900: until then a preload of the course may hold a GPU. The timetable is in
        the course's manifest.

        Example: ``c.PyTorchSpawner.class_early_s = 900``
        """,
    )

    class_late_s = Float(
        600,
        min=0,
        config=True,
        help="""
        Seconds after a class began until which seats that nobody took are kept; then they are
        everybody's. Default: 600.

        Example: ``c.PyTorchSpawner.class_late_s = 300``
        """,
    )

    class_seats_share = Float(
        0.8,
        min=0,
        max=1,
        config=True,
        help="""
        Share of each pool (its GPUs, slots and MIG instances in service, rounded up) that classes
        may have around their beginning, whatever timetables ask for; all else stays everybody's. It
        counts what is kept for a class and what its students hold. Default: 0.8, which of a pool of
        four or fewer is all of it. 0: nothing is kept for classes; 1: no bound.

        Example: ``c.PyTorchSpawner.class_seats_share = 0.5``
        """,
    )

    max_lease_s = Integer(
        0,
        min=0,
        config=True,
        help="""
        Longest time in seconds that one start may hold GPUs; its server is then stopped, after a
        warning. 0 (default): no limit. A grant may set a shorter one. Queues can only say when a
        GPU is expected where there is a limit.

        Example: ``c.PyTorchSpawner.max_lease_s = 4 * 3600``
        """,
    )

    keep_after_crash_s = Float(
        60,
        min=0,
        config=True,
        help="""
        Seconds for which the GPUs of a server that ended by itself are kept for its next start.
        Default: 60. 0: they go to whoever waits. A server that somebody stops gives them back at
        once.

        Example: ``c.PyTorchSpawner.keep_after_crash_s = 300``
        """,
    )

    gpu_modes = Dict(
        Unicode(),
        config=True,
        help="""
        How GPUs are shared: UUID, pool or ``"*"`` to ``"exclusive"`` (default) or ``"shared:N"``,
        N servers on one GPU with 1/N of its memory each. The admin's own setting comes first. A
        GPU in use changes once nobody holds it.

        Example: ``c.PyTorchSpawner.gpu_modes = {"teaching": "shared:4"}``
        """,
    )

    gpu_pools = Dict(
        Unicode(),
        config=True,
        help="""
        Pools of GPUs: UUID to name; what is not listed is in "default".

        Example: ``c.PyTorchSpawner.gpu_pools = {"GPU-1b2c…": "teaching"}``
        """,
    )

    mps_pipe_dir = Unicode(
        "",
        config=True,
        help="""
        Pipe directory of the CUDA MPS daemon on the engine's host, if it runs one: then the memory
        of slots is limited by the driver (hard), else by PyTorch alone (soft). Empty (default):
        none.

        Example: ``c.PyTorchSpawner.mps_pipe_dir = "/tmp/nvidia-mps"``
        """,
    )

    starts_at_once = Integer(
        50,
        min=0,
        config=True,
        help="""
        Most containers being started at the same time; further ones wait with their GPU. Default:
        50. 0: no limit of this kind; ``boots_at_once`` is another. It takes the place of
        ``JupyterHub.concurrent_spawn_limit``, which counts those who queue for a GPU too and
        refuses whoever comes after.

        Example: ``c.PyTorchSpawner.starts_at_once = 20``
        """,
    )

    boots_at_once = Integer(
        None,
        min=0,
        allow_none=True,
        config=True,
        help="""
        Most servers that boot at the same moment, in the order in which they came. ``None``
        (default): as many as the hub's machine has cores. 0: no limit, all boot at once. One more
        begins whenever a core is free, and nobody is waited for longer than 1.5 s. It counts only
        where the engine runs on the hub's machine; elsewhere nobody is held up.

        Example: ``c.PyTorchSpawner.boots_at_once = 4``
        """,
    )

    uid_range = Tuple(
        Integer(),
        Integer(),
        default_value=(20000, 59999),
        config=True,
        help="""
        First and last uid given out by the ledger, inclusive, both >= 1000. Default: 20000-59999.

        A uid is given to one user for ever and never to another, also after the user has left.

        Example: ``c.PyTorchSpawner.uid_range = (30000, 39999)``
        """,
    )

    uid_auth_state_key = Unicode(
        "",
        config=True,
        help="""
        Key of ``auth_state`` that holds the user's uid: a number, or a mapping with ``uid`` and
        ``gid``. Empty (default): auth_state is not asked. It comes before every other source.

        Example: ``c.PyTorchSpawner.uid_auth_state_key = "ldap"``
        """,
    )

    uid_from_passwd = Bool(
        False,
        config=True,
        help="""
        Take the uid of the user of that name on the hub's machine, if there is one. Default: False.
        It comes after auth_state and before the ledger's own range.

        Example: ``c.PyTorchSpawner.uid_from_passwd = True``
        """,
    )

    home_root = Unicode(
        "",
        config=True,
        help="""
        Directory on the *engine's* host under which homes are bind-mounted, one directory a user.
        Empty (default): a named volume per user. Missing homes are made with mode 0700 and the
        user's uid; one that belongs to somebody else is refused. The directory itself is never
        made: while it is not there, or empty again, its file system is not mounted.

        Example: ``c.PyTorchSpawner.home_root = "/srv/homes"``
        """,
    )

    home_dir = Unicode(
        "/home/lab",
        config=True,
        help="""
        Where a home is in its container; ``{login}`` stands for the login name. Default:
        "/home/lab", the same for all, because what a warm cache holds of CUDA's own cache is found
        in the very working directory alone (docs/explanation/measurements.md): with ``{login}`` the
        first attention in a notebook takes about a second more on Hopper GPUs. ``/home/LOGIN`` is a
        link to it, unless something is mounted there.

        Example: ``c.PyTorchSpawner.home_dir = "/home/{login}"``
        """,
    )

    @validate("home_dir")
    def _home_dir_is_usable(self, proposal: Any) -> Any:
        try:
            identity.home_path(proposal["value"], "student")
        except ValueError as error:
            raise TraitError(f"c.PyTorchSpawner.home_dir: {error}") from error
        return proposal["value"]

    helper_image = Unicode(
        "",
        config=True,
        help="""
        Image of the short-lived container that prepares homes: any trusted one with python3.
        Empty (default): ``image``.

        Example: ``c.PyTorchSpawner.helper_image = "pytorch-spawner/lab:cpu"``
        """,
    )

    pids_limit = Integer(
        4096,
        min=64,
        config=True,
        help="""
        Most processes and threads in one container. Default: 4096. A single-user server with a
        compile uses about 150.

        Example: ``c.PyTorchSpawner.pids_limit = 8192``
        """,
    )

    shm_mib = Integer(
        1024,
        min=64,
        config=True,
        help="""
        Size of /dev/shm in MiB, through which DataLoader workers hand over tensors. Default: 1024
        (Docker's own 64 ends in a "bus error"). It counts against the memory limit once used.

        Example: ``c.PyTorchSpawner.shm_mib = 8192``
        """,
    )

    ca_bundle = Unicode(
        "",
        config=True,
        help="""
        PEM file on the hub's machine with the site's certificate authorities, for sites behind a
        TLS-inspecting proxy. It is copied into every container, and pip, git, curl, requests and
        Node are told of it. Empty (default): none.

        Example: ``c.PyTorchSpawner.ca_bundle = "/etc/ssl/certs/ca-certificates.crt"``
        """,
    )

    lab_url = Unicode(
        "",
        config=True,
        help="""
        Where *containers* reach the lab service, up to and with ``/services/lab/``. Empty: agents
        report nowhere and pages show the hub's own messages only. ``pytorch_spawner.hub.add_lab``
        sets it.

        Example: ``c.PyTorchSpawner.lab_url = "http://172.17.0.1:8099/services/lab/"``
        """,
    )

    warmup = Bool(
        True,
        config=True,
        help="""
        Run small models through torch.compile in the background after Lab answers, at the lowest
        priority, so that the first compile in a notebook finds a warm cache. Default: True.

        Example: ``c.PyTorchSpawner.warmup = False``
        """,
    )

    warmup_models = List(
        Enum(["mlp", "cnn", "transformer"]),
        ["mlp", "cnn", "transformer"],
        config=True,
        help="""
        Which small models to warm up, in order. Default: all three of "mlp", "cnn", "transformer".

        Example: ``c.PyTorchSpawner.warmup_models = ["mlp"]``
        """,
    )

    warmup_modes = List(
        Enum(["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]),
        ["default"],
        config=True,
        help="""
        Modes of torch.compile to warm up. Default: ["default"]. max-autotune takes minutes.

        Example: ``c.PyTorchSpawner.warmup_modes = ["default", "reduce-overhead"]``
        """,
    )

    warmup_deadline_s = Float(
        600,
        min=1,
        config=True,
        help="""
        Seconds after which a warm-up that has not finished is ended. Default: 600. Its end never
        touches the server.

        Example: ``c.PyTorchSpawner.warmup_deadline_s = 120``
        """,
    )

    warm_caches = Bool(
        True,
        config=True,
        help="""
        Give a start the lab's published warm cache (``pytorch-spawner cache``) that fits its
        image, GPU, driver and course. Default: True. It is copied in the background; without one
        the plain warm-up runs.

        Example: ``c.PyTorchSpawner.warm_caches = False``
        """,
    )

    warmer_network = Unicode(
        "",
        config=True,
        help="""
        Docker network of the containers that build warm caches. Empty (default): one of their own
        without a way out, which the hub makes; it must then run on the engine's host. A suite that
        asks for the network (``network: true``) gets the one that students have.

        Example: ``c.PyTorchSpawner.warmer_network = "builders"``
        """,
    )

    standby_kernels = Integer(
        1,
        min=0,
        max=4,
        config=True,
        help="""
        Kernels that wait in each server with PyTorch already imported, so that a new notebook
        begins at once; each takes about 0.4 GiB of the server's memory, and none waits where memory
        is short. Default: 1. 0: none. For images that have them, as the lab's own do.

        Example: ``c.PyTorchSpawner.standby_kernels = 0``
        """,
    )

    course_data = Dict(
        value_trait=Union([Unicode(), Dict()]),
        key_trait=Unicode(),
        config=True,
        help="""
        Data sets that a course may ask for: name -> absolute path on the engine's host, or name of
        a volume. A course's manifest says where each is mounted, always read-only. Default: none.

        With a path alone any course may ask for it, so any instructor's. A mapping says who may:
        ``source`` (the path or volume), ``courses`` (names of courses; left out: all) and
        ``groups`` (JupyterHub groups; it is mounted in the servers of their members alone; left
        out: everybody's). Whoever may not is told so when the server starts, and in the smoke test.
        The name of a course that was removed may be taken by any instructor: name ``groups`` where
        that matters.

        Example: ``c.PyTorchSpawner.course_data = {"imagenet": "/srv/data/imagenet", "scans":
        {"source": "/srv/data/scans", "courses": ["radiology"], "groups": ["ethics-2026"]}}``
        """,
    )

    @validate("course_data")
    def _course_data_is_usable(self, proposal: Any) -> Any:
        try:
            course_data.parse(proposal["value"])
        except ValueError as error:
            raise TraitError(f"c.PyTorchSpawner.course_data: {error}") from error
        return proposal["value"]

    prepull = Bool(
        True,
        config=True,
        help="""
        Pull the images on offer in the background when the hub begins to start servers, so that no
        student waits for a pull. Default: True. ``pull_policy = "never"`` turns it off as well.

        Example: ``c.PyTorchSpawner.prepull = False``
        """,
    )

    ask_options = Enum(
        ["auto", "always", "never"],
        "auto",
        config=True,
        help="""
        Whether a start asks for image, GPU and course first. ``"auto"`` (default): only where there
        is more than one image, pool or course, or more than one GPU per server.

        Example: ``c.PyTorchSpawner.ask_options = "always"``
        """,
    )

    # DockerSpawner's defaults that are traps here.
    remove = Bool(
        True,
        config=True,
        help="""
        Remove containers when they stop. Always true in effect: a container that is kept would be
        restarted with its old GPUs, image and environment. Homes are volumes and stay.
        """,
    )

    @validate("remove")
    def _always_remove(self, _proposal: Any) -> bool:
        return True

    @default("start_timeout")
    def _start_timeout_default(self) -> int:
        return 180

    @default("http_timeout")
    def _http_timeout_default(self) -> int:
        return 60

    @default("name_template")
    def _name_template_default(self) -> str:
        return "{lab_container}"
