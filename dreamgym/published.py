"""Published scores of Atari games at 100,000 interactions, and those of random play and of people beside them.

The published system is that of Robine et al. 2023, "Smaller World Models for Reinforcement Learning", Table 2: means of
5 runs with 32 episodes each, with four and with one frame a step. Random play and people are the reference scores of
Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", as the literature on Atari 100k
has them.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """Mean scores of one game.

    Attributes:
        random: of uniform random actions.
        human: of a person.
        four_frames: of the published system that sees four frames a step.
        one_frame: of the one that sees one.
    """

    random: float
    human: float
    four_frames: float
    one_frame: float

    def normalised(self, score: float) -> float:
        """A score on the scale on which random play is 0 and a person 1."""
        return (score - self.random) / (self.human - self.random)


PUBLISHED = {
    "Alien": Published(227.8, 7127.7, 409.9, 423.3),
    "Amidar": Published(5.8, 1719.5, 37.6, 30.5),
    "Assault": Published(222.4, 742, 375.4, 408.3),
    "Asterix": Published(210, 8503.3, 504.4, 456.5),
    "Asteroids": Published(719.1, 47388.7, 862.9, 989.9),
    "Atlantis": Published(12850, 29028.1, 9413.1, 15463.7),
    "BankHeist": Published(14.2, 753.1, 101.2, 249.3),
    "BattleZone": Published(2360, 37187.5, 5631.2, 5531.3),
    "BeamRider": Published(363.9, 16926.5, 410.4, 527.6),
    "Bowling": Published(23.1, 160.7, 27.9, 24.5),
    "Boxing": Published(0.1, 12.1, -2.8, -9.3),
    "Breakout": Published(1.7, 30.5, 8.8, 8.4),
    "ChopperCommand": Published(811, 7387.8, 766.2, 590.6),
    "CrazyClimber": Published(10780.5, 35829.4, 47536.9, 36923.8),
    "DemonAttack": Published(152.1, 1971, 195, 211.3),
    "FishingDerby": Published(-91.7, -38.7, -89.6, -87.9),
    "Freeway": Published(0, 29.6, 24.6, 11.3),
    "Frostbite": Published(65.2, 4334.7, 214.4, 219.1),
    "Gopher": Published(257.6, 2412.5, 687.2, 1398.4),
    "Gravitar": Published(173, 3351.4, 87.2, 82.2),
    "Hero": Published(1027, 30826.4, 3453.6, 3911.6),
    "IceHockey": Published(-11.2, 0.9, -13.6, -12),
    "Jamesbond": Published(29, 302.8, 66.6, 46.6),
    "Kangaroo": Published(52, 3035, 245, 276.3),
    "Krull": Published(1598, 2665.5, 3520.2, 3241),
    "KungFuMaster": Published(258.5, 22736.3, 11903.1, 8521.2),
    "MsPacman": Published(307.3, 6951.6, 652.2, 668.3),
    "NameThisGame": Published(2292.3, 8049, 2448.4, 2119.4),
    "Pong": Published(-20.7, 14.6, 11.8, -3.9),
    "PrivateEye": Published(24.9, 69571.3, 99.4, 96.9),
    "Qbert": Published(163.9, 13455, 480.9, 617.5),
    "Riverraid": Published(1338.5, 17118, 2100.2, 2273.3),
    "RoadRunner": Published(11.5, 7845, 1562.5, 1723.8),
    "Seaquest": Published(68.4, 42054.7, 458.1, 531.5),
    "UpNDown": Published(533.4, 11693.2, 1128.2, 1354.6),
    "YarsRevenge": Published(3092.9, 54576.9, 4096, 4360.3),
}
"""By the name of the game."""
