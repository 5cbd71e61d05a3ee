"""The losses' benchmark with the peers that few machines have (Liger-Kernel, quack), and the pages that show
its result."""

from benchmarks.kernels.liger import Liger
from benchmarks.kernels.quack import Quack

PEERS = (Liger(), Quack())
