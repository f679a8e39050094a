"""The network: one backbone, a file for each family, and the policy that the rest of Drift uses."""
