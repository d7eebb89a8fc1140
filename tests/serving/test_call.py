"""What a call of a registered model may hold; tests/tracking/test_served_model.py has it through MLflow."""

from typing import Any

import numpy as np
import pytest

from kshot.data.items import ImageKind, VectorKind
from kshot.errors import EpisodeError, ModelError
from kshot.serving.call import read_call, read_items, read_labels

GREY, VECTOR = ImageKind(image_size=16, channels=1), VectorKind(size=3)


def test_older_names_stand_for_the_new_ones_and_not_beside_them() -> None:
    call = read_call({"support_images": 1, "support_labels": 2, "query_images": 3})
    assert (call.support_items, call.support_labels, call.query_items) == (1, 2, 3)
    with pytest.raises(ModelError, match="found the inputs support_images, support_items, support_labels, query_items"):
        read_call({"support_images": 1, "support_items": 1, "support_labels": 2, "query_items": 3})
    with pytest.raises(ModelError, match="found the inputs none; need support_items, support_labels, query_items"):
        read_call({})


def test_whole_numbers_in_a_list_are_pixels_only_where_they_fit_into_a_byte() -> None:
    pixels = np.arange(256).reshape(1, 16, 16, 1)
    assert (read_items(pixels.tolist(), GREY) == pixels).all()
    with pytest.raises(ModelError, match="the values go from 1 to 256; need 0 to 255"):
        read_items((pixels + 1).tolist(), GREY)


def test_vectors_are_read_by_their_own_rule() -> None:
    found = read_items([[1, 2, 300], [0.5, -1, 0]], VECTOR)
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 2, 300], [0.5, -1, 0]]
    with pytest.raises(ModelError, match=r"of a list of 1, found numbers of shape \(2,\); needed \(3,\)"):
        read_items([[1, 2]], VECTOR)


@pytest.mark.parametrize("labels", [[2**70, 1], [b"a", b"b"], np.array(["a", None]), np.array([1.0, 2.0])], ids=str)
def test_labels_of_no_plain_type_are_refused(labels: Any) -> None:
    with pytest.raises(EpisodeError, match="need whole numbers of 64 bits alone, or texts alone"):
        read_labels(labels, 2)


@pytest.mark.parametrize("give", [np.asarray, np.ndarray.tolist], ids=["array", "list"])
def test_whole_numbers_are_values_of_the_range_where_there_is_one(give: Any) -> None:
    deep = ImageKind(image_size=8, channels=1, value_range=(0, 4080))
    values = np.arange(64).reshape(1, 8, 8) * 16
    assert np.array_equal(read_items(give(values), deep)[0, :, :, 0], values[0] // 16)


def test_the_largest_whole_numbers_stay_apart() -> None:
    assert read_labels([2**63, 2**63 + 1], 2).tolist() == [2**63, 2**63 + 1]
    with pytest.raises(EpisodeError, match="need whole numbers of 64 bits alone"):
        read_labels([2**63, -1], 2)
