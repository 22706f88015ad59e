"""The commands of training and of its configurations: LightningCLI, run folders, figures."""
