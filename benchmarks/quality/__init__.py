"""How much of an ensemble the students keep on real data sets, beside other tools' models."""
