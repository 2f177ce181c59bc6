"""Exceptions for model types that find and match keypoints in images."""

from __future__ import annotations

from lxt.coverage.exceptions import Tweak

TWEAKS: dict[str, Tweak] = {
    "lightglue": Tweak(
        "matches the keypoints of two images; names the width of their descriptors, which it "
        "detaches from the images; where there are fewer keypoints in one, the rest is hidden by "
        "scores of -1e308, so both are the same",
        config={
            "descriptor_dim": lambda size: size.hidden,
            "intermediate_size": lambda size: 2 * size.hidden,
            "keypoint_detector_config.descriptor_decoder_dim": lambda size: size.hidden,
        },
        kwargs={"pixel_values": lambda m: m.floats(1, 1, 3, 64, 64).expand(2, 2, -1, -1, -1)},
        embedding="input_projection",
        output="matching_scores",
    ),
    "superpoint": Tweak(
        "scores come out of softmax, so are constants under CP-LRP", output="descriptors"
    ),
    "superglue": Tweak(
        "matches the keypoints of two images, whose descriptors are 256 wide",
        config={"hidden_size": 256, "num_attention_heads": 4},
        leaves={"pixel_values": lambda m: (m.size.batch, 2, 3, 64, 64)},
    ),
    "efficientloftr": Tweak(
        "matches are made by softmax, so constants under CP-LRP: explains the features of two "
        "images; rotary positions want 8 heads, and the widths of all blocks are listed one by one",
        model_class="EfficientLoFTRModel",
        init={"stage_num_blocks": [1, 1, 1, 1]},
        config={
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "stage_in_channels": [1, 64, 64, 128],
        },
        leaves={"pixel_values": lambda m: (m.size.batch, 2, 3, 64, 64)},
    ),
}
