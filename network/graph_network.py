"""Any classifier of torchvision as a chain of units: cut where one tensor alone crosses its torch.fx graph.

    model = GraphNetwork('torchvision:resnet50', num_classes=10)      # random weights; logits = model(images)
    model.blocks[3]                                                   # what lies between the third cut and the fourth

A unit runs as it is: BatchNorm is not folded, and there are no branches, so there is nothing to prune and one γ.
In-place operators become ordinary ones, since what crosses a cut may be kept by whoever sent it.

A device builds the network itself, from its name: its weights travel, and no code. So torchvision is needed there.
"""
from __future__ import annotations

import copy
import functools
import operator
import re
import warnings
from types import ModuleType
from typing import Any, Dict, FrozenSet, List, NamedTuple, Tuple

import numpy as np
import torch
import torch.fx
import torch.nn as nn

import cli
from config import UserError
from network import checkpoints
from network.shapes import BRANCHES, TORCHVISION, ClassifierShape, GraphShape

try:
    from torch.utils.flop_counter import FlopCounterMode
except ImportError:  # before PyTorch 2.1: `_models` says so
    FlopCounterMode = None

Node = torch.fx.Node
FLOAT_BYTES = 4
SHAPES_AT = 224  # pixels at which a network is cut; where it can be cut does not depend on them
TRACED_BATCH = 2  # images in a pass that measures shapes: an axis that is no batch shows
ORDINARY = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
            operator.itruediv: operator.truediv}
_CONSTANT = '_tensor_constant'  # what torch.fx calls a tensor that is no weight
_AUXILIARY = re.compile(r'aux\d\.|AuxLogits\.')  # classifiers that only train
_DENSENET = re.compile(r'(denselayer\d+\.(?:norm|relu|conv))\.([12])\.')  # names in torchvision's own older files


# --- building and cutting a network ---------------------------------------------------------------------

def _models() -> ModuleType:
    models = cli.optional('torchvision.models', 'torchvision', f'networks called {TORCHVISION}...')
    if FlopCounterMode is None or not hasattr(models, 'list_models'):
        raise UserError(f'networks called {TORCHVISION}... need PyTorch 2.1 and torchvision 0.16 or newer here; this '
                        f'is PyTorch {torch.__version__}')
    return models


def classifiers() -> List[str]:
    """The names of torchvision's classifiers."""
    models = _models()
    return models.list_models(module=models)


def traced(model_name: str, num_classes: int) -> torch.fx.GraphModule:
    """The graph of a classifier with random weights, without in-place operators. Raises `UserError` where torchvision
    has none of this name, or its code cannot be traced."""
    name = model_name[len(TORCHVISION):]
    if name not in classifiers():
        raise UserError(f'MODEL_NAME={model_name}: torchvision has no classifier {name!r}; it has '
                        f'{", ".join(classifiers())}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # two networks announce that their random weights will change
            model = _models().get_model(name, weights=None, num_classes=num_classes).eval()
        return without_in_place(torch.fx.symbolic_trace(model))
    except Exception as error:  # whatever code that depends on values provokes in the tracer
        raise UserError(f'MODEL_NAME={model_name}: its graph cannot be traced ({type(error).__name__})') from None


def without_in_place(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph with ordinary operators in the place of those that change their input, whose later users take the
    result instead; the graph itself is changed. (An input that is a view of something else is not followed there.)"""
    in_place = {name: module for name, module in graph.named_modules() if getattr(module, 'inplace', False)}
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        if node.op == 'call_module' and node.target in in_place:
            in_place[node.target].inplace = False
        elif node.op == 'call_function' and (node.target in ORDINARY or node.kwargs.get('inplace')):
            node.target = ORDINARY.get(node.target, node.target)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != 'inplace'}
        elif node.op == 'call_method' and re.fullmatch(r'[a-z]\w*[a-z0-9]_', node.target):  # add_, relu_
            node.target = node.target[:-1]
        else:
            continue
        changed = node.args[0]
        for user in [user for user in changed.users if order[user] > order[node]]:
            user.replace_input_with(changed, node)
    graph.recompile()
    return graph


class Segment(NamedTuple):
    """What lies between two cuts: its nodes, in order, and the one whose value enters it. What they need beside that is
    computed from weights alone."""
    entering: Node
    nodes: Tuple[Node, ...]

    @property
    def name(self) -> str:
        """Of the node whose value leaves it."""
        return self.nodes[-1].name


def segments_of(graph: torch.fx.Graph, tensors: FrozenSet[str]) -> List[Segment]:
    """The graph cut after every node of these names behind which one value alone is still needed: its own. Weights and
    what is computed from them alone cross no cut: whoever needs them has them."""
    found, pending = [], []
    image, answer, order = _ends(graph)
    from_image = {image}
    for node in order:
        if from_image.intersection(node.all_input_nodes):
            from_image.add(node)
    position = {node: index for index, node in enumerate(order)}
    last_use = {node: max((position.get(user, len(order)) for user in node.users), default=-1) for node in from_image}
    entering, needed = image, {image}
    for index, node in enumerate(order):
        pending += [node] if node in from_image else []
        needed = {one for one in needed | ({node} & from_image) if last_use[one] > index}
        if needed == {node} and node is not answer and node.name in tensors:
            found.append(Segment(entering, tuple(pending)))
            entering, pending = node, []
        if node is answer:
            found.append(Segment(entering, tuple(pending)))
            return found
    raise ValueError('a graph whose result none of its nodes computes')


def _ends(graph: torch.fx.Graph) -> Tuple[Node, Node, List[Node]]:
    """The image, the logits, and the nodes in between, in order."""
    nodes = list(graph.nodes)
    images = [node for node in nodes if node.op == 'placeholder']
    answer = nodes[-1].args[0]
    if len(images) != 1 or not isinstance(answer, Node):
        raise ValueError('a graph with more than one input or output')
    return images[0], answer, [node for node in nodes if node.op not in ('placeholder', 'output')]


def module_of(graph: torch.fx.GraphModule, segment: Segment) -> torch.fx.GraphModule:
    """A segment as a module of its own; it shares the graph's weights."""
    made = torch.fx.Graph()
    copies: Dict[Node, Node] = {segment.entering: made.placeholder('x')}

    def copied(node: Node) -> Node:  # with the constants that it needs, wherever they were made
        if node not in copies:
            copies[node] = made.node_copy(node, copied)
        return copies[node]

    for node in segment.nodes:
        copied(node)
    made.output(copies[segment.nodes[-1]])
    return torch.fx.GraphModule(graph, made)


class AsItIs(nn.Module):
    """A unit that is its own plan, under γ 0: it counts as one branch."""
    n_branches = 1


class GraphUnit(AsItIs):
    """A segment of a graph: x [B, ...] -> [B, ...]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.register_buffer('alpha', torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Empty(AsItIs):
    """The stem and the classifier of a network whose blocks are all of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


# --- the network, as HyperRepVGG ------------------------------------------------------------------------

class GraphNetwork(nn.Module):
    """Images [B, 3, S, S] -> logits [B, num_classes], in units; frozen. α is 1 for the one branch of every block."""

    def __init__(self, model_name: str, num_classes: int = 1000) -> None:
        super().__init__()
        self.model_name, self.num_classes = model_name, num_classes
        self.graph = traced(model_name, num_classes)
        names = frozenset(_template(model_name, num_classes).names)
        cut = segments_of(self.graph.graph, names)
        self.block_names = [segment.name for segment in cut]
        self._blocks = [GraphUnit(module_of(self.graph, segment)) for segment in cut]  # their weights are the graph's
        self.stage0, self.linear = Empty(), Empty()
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.eval()

    @property
    def blocks(self) -> List[GraphUnit]:
        """The N blocks, in order of execution."""
        return self._blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.graph(x)

    def _apply(self, fn, *args, **kwargs):  # .to(), .double(): blocks share the weights, if not the modules
        result = super()._apply(fn, *args, **kwargs)
        for block in self._blocks:
            block._apply(fn, *args, **kwargs)
        return result

    def alphas(self) -> List[nn.Parameter]:
        """Nothing is trained."""
        return []

    def alpha_array(self) -> np.ndarray:
        """α as float64 [N, 3]: 1, and NaN for what the blocks of other networks have."""
        alpha = np.full((len(self._blocks), len(BRANCHES)), np.nan)
        alpha[:, 0] = 1
        return alpha

    def set_alpha_array(self, alpha: np.ndarray) -> None:
        """Raises `ValueError` for any other α [N, 3]."""
        if not np.array_equal(np.asarray(alpha, dtype=float), self.alpha_array(), equal_nan=True):
            raise ValueError('a network without branches has α = 1 everywhere')

    def load_weights(self, path: str) -> None:
        """Take torchvision's weights from a file. Raises `UserError` where they do not fit."""
        own = {name: value for name, value in self.graph.state_dict().items() if not name.startswith(_CONSTANT)}
        state = {_DENSENET.sub(r'\1\2.', name): value
                 for name, value in checkpoints.unprefixed(checkpoints.read_checkpoint(path)).items()}
        state = {name: value for name, value in state.items() if name in own or not _AUXILIARY.match(name)}
        checkpoints.refuse_misfit(path, state, own)
        self.graph.load_state_dict(state, strict=False)  # less counters and constants, which a file may lack


# --- what a network is without weights: for tables, and for a device ------------------------------------

class Template(NamedTuple):
    """A network where it is cut, on the device 'meta' if it can be made there: it has shapes, and takes no memory."""
    graph: torch.fx.GraphModule
    segments: Tuple[Segment, ...]

    @property
    def names(self) -> List[str]:
        """Of the segments."""
        return [segment.name for segment in self.segments]


@functools.lru_cache(maxsize=4)
def _template(model_name: str, num_classes: int) -> Template:
    try:
        with torch.device('meta'):
            graph = traced(model_name, num_classes)
    except UserError:  # some look at the random numbers that they begin with
        graph = traced(model_name, num_classes)
    odd = [name for name, module in graph.named_modules() if module._non_persistent_buffers_set]
    if odd:
        raise UserError(f'MODEL_NAME={model_name}: {odd[0]} holds constants that are no weights, and cannot travel')
    meter = _Meter(graph, model_name, SHAPES_AT)
    tensors = frozenset(node.name for node, value in meter.values.items() if isinstance(value, torch.Tensor) and
                        value.is_floating_point() and value.dim() > 1 and len(value) == TRACED_BATCH)
    return Template(graph, tuple(segments_of(graph.graph, tensors)))


def new_unit(model_name: str, num_classes: int, index: int) -> nn.Module:
    """Unit `index` of a network, with arbitrary weights."""
    template = _template(model_name, num_classes)
    if not 1 <= index <= len(template.segments):
        return Empty()
    unit = GraphUnit(copy.deepcopy(module_of(template.graph, template.segments[index - 1])).to_empty(device='cpu'))
    return unit.requires_grad_(False).eval()


class _Meter(torch.fx.Interpreter):
    """Runs a graph once, without values, and keeps what every node gives and how much work it does."""

    def __init__(self, graph: torch.fx.GraphModule, model_name: str, input_size: int) -> None:
        super().__init__(graph)
        self.values: Dict[Node, Any] = {}
        self.flops: Dict[Node, float] = {}  # of one image
        try:
            with torch.no_grad():
                self.run(torch.zeros(TRACED_BATCH, 3, input_size, input_size, device=next(graph.parameters()).device))
        except Exception as error:
            reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f'MODEL_NAME={model_name}: it cannot run images of INPUT_SIZE={input_size}: '
                            f'{reason[:150]}') from None

    def run_node(self, n: Node) -> Any:
        """As in torch.fx, and noted."""
        with FlopCounterMode(display=False) as counter:
            self.values[n] = super().run_node(n)
        self.flops[n] = counter.get_total_flops() / TRACED_BATCH
        return self.values[n]


def measured(model_name: str, num_classes: int, input_size: int,
             ) -> Tuple[Tuple[str, ...], GraphShape, Tuple[GraphShape, ...], ClassifierShape]:
    """Names of the blocks, and shapes of stem, blocks and classifier, for images of this size. FLOP are those of
    convolutions, linear layers and products of matrices. Raises `UserError`."""
    template = _template(model_name, num_classes)
    meter = _Meter(template.graph, model_name, input_size)
    blocks = tuple(_shape_of(template.graph, segment, meter) for segment in template.segments)
    stem = GraphShape('', (3, input_size, input_size), 0.0, 0.0, 0.0, 0.0)
    return tuple(template.names), stem, blocks, ClassifierShape(0, 0, 0)


def _shape_of(graph: torch.fx.GraphModule, segment: Segment, meter: _Meter) -> GraphShape:
    known, last_use = {segment.entering, *segment.nodes}, {}
    for index, node in enumerate(segment.nodes):
        last_use.update(dict.fromkeys(known.intersection(node.all_input_nodes), index))
    alive, peak, moved = {segment.entering}, 0.0, 0.0
    for index, node in enumerate(segment.nodes):
        alive.add(node)
        peak = max(peak, sum(_image_bytes(meter.values[one]) for one in alive))
        moved += sum(_image_bytes(meter.values[one]) for one in known.intersection((node, *node.all_input_nodes)))
        alive = {one for one in alive if last_use.get(one, -1) > index or one is segment.nodes[-1]}
    weights = [value for value in module_of(graph, segment).state_dict().values() if value.is_floating_point()]
    weight_bytes = float(FLOAT_BYTES * sum(value.numel() for value in weights))
    return GraphShape(' '.join(_operator(graph, node) for node in segment.nodes),
                      tuple(meter.values[segment.nodes[-1]].shape[1:]),
                      sum(meter.flops[node] for node in segment.nodes), moved + weight_bytes, weight_bytes, peak)


def _image_bytes(value: object) -> float:
    """Of one image's share of a value, as float32."""
    return FLOAT_BYTES * value.numel() / TRACED_BATCH if isinstance(value, torch.Tensor) else 0.0


def _operator(graph: torch.fx.GraphModule, node: Node) -> str:
    """What a node does, as far as its time depends on it."""
    if node.op == 'call_module':
        return repr(graph.get_submodule(node.target))
    return getattr(node.target, '__name__', str(node.target))
