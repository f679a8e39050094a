"""The lab: likelihood estimators on models small enough to enumerate."""
