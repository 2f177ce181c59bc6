"""Composites to register on the models of `open_clip`.

As in LXT, `attnlrp` takes attention weights as constants, which is less noisy in vision models.
With Zennit's γ-rule on convolutions and linear layers it is the recipe of the AttnLRP paper.
"""

from lxt import explicit
from lxt.explicit.core import Composite

attnlrp = Composite(explicit.cp_lrp)
cp_lrp = Composite(explicit.cp_lrp)
