"""Laws calibrated from recorded training curves: `calibrate`, and what it returns."""

from ._calibrate import calibrate as calibrate
from ._calibrate import cross_validate as cross_validate
from ._curves import Curve as Curve
from ._curves import read_curves as read_curves
from ._law import KernelLaw as KernelLaw
from ._law import Segments as Segments
from ._result import Calibration as Calibration
from ._result import Designed as Designed
from ._result import Interval as Interval
from ._result import Prediction as Prediction
from ._result import Seen as Seen
