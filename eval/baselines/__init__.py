"""Models that are not of this project, and controls: how they are run and how what they made is taken in."""
