"""What can be known without a label: looks at an image, criteria, pseudo-labels, and which image to annotate first."""
