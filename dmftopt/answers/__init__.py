"""Questions of practice, each answered in one call: what to run, how long, on how much data, in how large batches."""

from ._advise import Advice as Advice
from ._advise import Ranked as Ranked
from ._advise import advise as advise
from ._critical_batch_size import CriticalBatchSize as CriticalBatchSize
from ._critical_batch_size import critical_batch_size as critical_batch_size
from ._how_long import HowLong as HowLong
from ._how_long import how_long as how_long
from ._how_much_data import HowMuchData as HowMuchData
from ._how_much_data import how_much_data as how_much_data
from ._transfer import Moved as Moved
from ._transfer import Transfer as Transfer
from ._transfer import transfer as transfer
