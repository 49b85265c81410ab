"""Plain local training: the client of federated averaging and of its server-side variants."""

from fedsim.client import Client


class SGD(Client):
    """Trains the received model on the client's own data and returns it.

    On a continual stream this is the naive client: it keeps nothing of earlier experiences.

    Source:
        McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
        AISTATS 2017, arXiv:1602.05629.
    """
