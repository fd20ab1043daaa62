"""Networks below their layers: shapes, tables and the mathematics of folding.

shapes: the variants as numbers. outline: any network as tables and files need it. graph_network: torchvision's
classifiers, cut along their graph. alpha: which branches survive. gammas: the 14 ways to execute them. inputs: images
on their way in. folding: BatchNorm and branches into one convolution. merged_convolution: a block as one convolution
while α trains. batchnorm: statistics re-estimated after pruning. channels: which channels of a feature map are sent.
checkpoints: weights from a file.
"""
