"""Contrastive losses of regions and texts as pure functions.

softmax.py  multi_positive: softmax over unique texts and over regions, several positives each
sigmoid.py  sigmoid: every (region, text) pair by itself (SigLIP)
infonce.py  infonce: the paper's, a row for every region with its text
pairs.py    pairs, those that are no fair negatives, and their tiles
texts.py    texts that the ranks encoded in equal slices, whole on every rank

Letters: R regions of this rank, T distinct texts of the global batch, D embedding, P (region, text) pairs.

Every distinct text is encoded once for the whole global batch; regions never leave their rank. Logits exist one tile of
rows at a time, forward and backward, so memory is linear in the tile. All arithmetic is in fp32 or wider, whatever
the embeddings are in.
"""

from villa_dist.losses.infonce import infonce
from villa_dist.losses.pairs import Pairs, near_pairs, near_texts
from villa_dist.losses.sigmoid import sigmoid
from villa_dist.losses.softmax import multi_positive
from villa_dist.losses.texts import gather_texts

__all__ = ["Pairs", "gather_texts", "infonce", "multi_positive", "near_pairs", "near_texts", "sigmoid"]
