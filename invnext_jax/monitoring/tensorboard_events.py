"""TensorBoard events, imported from tensorboardX without PyTorch.

tensorboardX imports PyTorch if it is installed. This takes a second at the start of each process,
and scalars and images do not need it.
"""

import sys

_is_imported = "torch" in sys.modules
if not _is_imported:
    sys.modules["torch"] = None  # `import torch` then raises an ImportError, as if it were missing
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.summary import scalar
finally:
    if not _is_imported:
        del sys.modules["torch"]

__all__ = ["Event", "EventsWriter", "SessionLog", "Summary", "scalar"]
