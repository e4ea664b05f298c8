def add_rows(
    total: int, size: int, rows: int, values: int, n: int, width: int, stride: int
) -> None: ...
def distinct(
    keys: int,
    n: int,
    highest: int,
    sizes: list[int],
    order: int,
    starts: int,
    rows: int,
    inverse: int,
) -> list[int]: ...
def gather(parts: list[tuple[int, int, int]], values: int, batch: int, width: int) -> None: ...
def multiply_back(parts: list[tuple[int, int, int, int, int, int, int]], columns: int) -> None: ...
def rowwise_adagrad(
    weight: int,
    total: int,
    size: int,
    rows: int,
    grad: int,
    n: int,
    width: int,
    lr: float,
    eps: float,
) -> bool: ...
def scatter(parts: list[tuple[int, int, int]], values: int, batch: int, width: int) -> None: ...
def take_rows(
    parts: list[tuple[int, int, int, int, int, int, int, int]], columns: int
) -> None: ...
def unpack(
    out: int, table: int, size: int, rows: int, n: int, width: int, bits: int, step: float
) -> None: ...
