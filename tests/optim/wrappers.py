"""Optimizers around an optimizer in the form in which they are passed around, for test_clients_wrappers.py."""

from collections import OrderedDict

import torch


class SAM(torch.optim.Optimizer):
    """Foret et al. 2021, arXiv:2010.01412: the gradient of a step is that at the worst point nearby."""

    def __init__(self, params, base_optimizer, rho=0.05, **kwargs):
        super().__init__(params, dict(rho=rho, **kwargs))
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for group in self.param_groups for p in group["params"]]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old_p"] = p.data.clone()
                p.add_(p.grad * group["rho"] / (norm + 1e-12))

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old_p"]
        self.base_optimizer.step()

    def step(self, closure):
        self.first_step()
        closure()
        self.second_step()

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups = self.param_groups


class SharedSAM:
    """SAM that keeps its perturbation among the states of the base optimizer."""

    def __init__(self, params, base_optimizer, rho=0.05, **kwargs):
        self.base_optimizer = base_optimizer(params, **kwargs)
        self.rho = rho

    def __getattr__(self, name):
        return getattr(self.base_optimizer, name)

    @torch.no_grad()
    def step(self, closure):
        params = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            self.state[p]["e_w"] = p.grad * self.rho / (norm + 1e-12)
            p.add_(self.state[p]["e_w"])
        with torch.enable_grad():
            closure()
        for p in params:
            p.sub_(self.state[p]["e_w"])
        self.base_optimizer.step()


class Lookahead(torch.optim.Optimizer):
    """Zhang et al. 2019, arXiv:1907.08610, with slow weights and counts in the states and groups of the base."""

    def __init__(self, params, base_optimizer, alpha=0.5, k=2, reset=None, **kwargs):
        self._base_optimizer = base_optimizer(params, **kwargs)
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        self.param_groups = self._base_optimizer.param_groups
        self.defaults = self._base_optimizer.defaults
        defaults = {"lookahead_alpha": alpha, "lookahead_k": k, "lookahead_step": 0}
        self.defaults.update(defaults)
        for group in self.param_groups:
            for name, default in defaults.items():
                group.setdefault(name, default)
        self.reset = reset

    @property
    def state(self):
        return self._base_optimizer.state

    @torch.no_grad()
    def update_slow(self, group):
        for p in group["params"]:
            state = self.state[p]
            if "slow_buffer" not in state:
                state["slow_buffer"] = torch.empty_like(p).copy_(p)
                state["syncs"] = 0
            slow = state["slow_buffer"]
            slow.add_(p - slow, alpha=group["lookahead_alpha"])
            p.copy_(slow)
            state["syncs"] += 1
            if self.reset:
                state[self.reset] = torch.zeros_like(p)

    def step(self, closure=None):
        loss = self._base_optimizer.step(closure)
        for group in self.param_groups:
            group["lookahead_step"] += 1
            if group["lookahead_step"] % group["lookahead_k"] == 0:
                self.update_slow(group)
        return loss

    def state_dict(self):
        return self._base_optimizer.state_dict()

    def load_state_dict(self, state_dict):
        self._base_optimizer.load_state_dict(state_dict)
        self.param_groups = self._base_optimizer.param_groups


class OrthoGrad(torch.optim.Optimizer):
    """Prieto et al. 2025, arXiv:2501.04697: a gradient loses its part along the weights."""

    def __init__(self, params, base_optimizer, **kwargs):
        super().__init__(params, {})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                w, g = p.view(-1), p.grad.view(-1)
                orthogonal = g - torch.dot(w, g) / (torch.dot(w, w) + 1e-30) * w
                p.grad.copy_((orthogonal * (g.norm() / (orthogonal.norm() + 1e-30))).view_as(p))
        return self.base_optimizer.step(closure)

    def state_dict(self):
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict):
        self.base_optimizer.load_state_dict(state_dict)


class LARC:
    """Apex's: a step size for each tensor, by scaled gradients, and weight decay taken over for the time of a step."""

    def __init__(self, params, base_optimizer, trust_coefficient=0.02, eps=1e-8, **kwargs):
        self.optim = base_optimizer(params, **kwargs)
        self.trust_coefficient, self.eps = trust_coefficient, eps

    def __getattr__(self, name):
        return getattr(self.optim, name)

    @torch.no_grad()
    def step(self):
        decays = [group["weight_decay"] for group in self.optim.param_groups]
        for group, decay in zip(self.optim.param_groups, decays, strict=True):
            group["weight_decay"] = 0
            for p in group["params"]:
                norm, grad_norm = p.norm(), p.grad.norm()
                own_lr = self.trust_coefficient * norm / (grad_norm + norm * decay + self.eps)
                p.grad.add_(p, alpha=decay).mul_(min(own_lr / group["lr"], 1))
        self.optim.step()
        for group, decay in zip(self.optim.param_groups, decays, strict=True):
            group["weight_decay"] = decay
