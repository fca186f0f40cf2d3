from .drops import drops_table as drops_table
from .drops import plot_drops as plot_drops
from .layers import judge_layers_table as judge_layers_table
from .layers import plot_judge_layers as plot_judge_layers
from .verdicts import plot_verdicts as plot_verdicts
from .verdicts import short as short
from .verdicts import verdicts_table as verdicts_table
