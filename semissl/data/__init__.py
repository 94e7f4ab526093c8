"Images and labels from wherever people keep them. These names stay; a room's others may change."
from .images import ImageSet, from_arrays
from .labels import label_rows
from .loader import FewLabelLoader
from .pictures import as_images
from .sources import clear_cache, load_images
from .split import LabelSplit, duplicate_report, hide_labels, label_split
from .table import apply_labels, read_labels
