"""The formulas of the docstrings, typeset: LaTeX by name, which `conf.py` puts above the text.

The docstring is what counts; a test sees to it that every loss and temperature rule is here.
"""

_P = r"p_i = \mathrm{softmax}(t_i / T_i), \quad q_i = \mathrm{softmax}(s_i / T_i)"

FORMULAS = {
    # Logits
    "losses.kd": rf"L_i = T_i^2 \sum_k p_{{ik}} (\log p_{{ik}} - \log q_{{ik}}), \qquad {_P}",
    "losses.kd_from_hidden": r"L_i = \mathrm{kd}(h^s_i W^s,\; h^t_i W^t)",
    "losses.reverse_kl": rf"L_i = T_i^2 \sum_k q_{{ik}} (\log q_{{ik}} - \log p_{{ik}}), \qquad {_P}",
    "losses.jensen_shannon": (
        r"L_i = T_i^2 \left[ w\, \mathrm{KL}(p_i \,\Vert\, m_i) + (1 - w)\,"
        r" \mathrm{KL}(q_i \,\Vert\, m_i) \right],"
        r" \qquad m = w p + (1 - w) q"
    ),
    "losses.soft_cross_entropy": rf"L_i = -T_i^2 \sum_k p_{{ik}} \log q_{{ik}}, \qquad {_P}",
    "losses.in_chunks": r"L_i = f(h^s_i W^s,\; h^t_i W^t,\; \ldots)",
    "losses.kd_top_k": (
        r"L_i = T^2 \Big[ \sum_{k \in S} p_{ik} \log \frac{p_{ik}}{q_{ik}}"
        r" + p'_i \log \frac{p'_i}{q'_i} \Big],"
        r" \qquad p'_i = 1 - \sum_{k \in S} p_{ik}, \quad q'_i = 1 - \sum_{k \in S} q_{ik}"
    ),
    "losses.alpha_beta": (
        r"L_i = -\frac{1}{a b} \sum_k \Big[ p_{ik}^a q_{ik}^b - \frac{a}{a + b} p_{ik}^{a + b}"
        r" - \frac{b}{a + b} q_{ik}^{a + b} \Big]"
    ),
    "losses.cross_entropy": r"L_i = -\log \mathrm{softmax}(s_i)_{y_i}",
    "losses.entropy_weights": r"w_i = \frac{1}{2} \Big( H(p_i) + \frac{H(p_i) H(q_i)}{c} \Big)",
    "losses.repair": (
        r"t'_{iy} = \max_k t_{ik}, \quad t'_{ij} = t_{iy} \text{ for } j = \arg\max_k t_{ik}"
        r" \qquad \text{(swap)}"
    ),
    "losses.wkd": (
        r"L_i = -p_{iy} \log q_{iy} + g \sum_{kl} P_{kl}\, c_{kl}, \qquad P = \mathrm{diag}(u)\, e^{-c / r}\,"
        r" \mathrm{diag}(v)"
    ),
    "losses.mse": r"L_i = \frac{1}{K} \sum_k (s_{ik} - t_{ik})^2",
    "losses.correlation": (r"L_i = \frac{K-1}{K} (1 - \rho_i) = \frac{1}{2K} \sum_k (z^s_{ik} - z^t_{ik})^2"),
    "losses.ttm": (
        r"L_i = \mathrm{KL}\big(r_i \,\Vert\, \mathrm{softmax}(s_i)\big), \qquad"
        r" r_{ik} = \frac{p_{ik}^\ell}{\sum_j p_{ij}^\ell}, \quad p_i = \mathrm{softmax}(t_i)"
    ),
    "losses.wttm": (
        r"L_i = U_i\, \mathrm{KL}\big(r_i \,\Vert\, \mathrm{softmax}(s_i)\big),"
        r" \qquad U_i = \sum_k p_{ik}^\ell"
    ),
    "losses.normkd": (
        r"L_i = T_i^2\, \mathrm{KL}\big(\mathrm{softmax}(t_i / T_i) \,\Vert\,"
        r" \mathrm{softmax}(s_i / T'_i)\big),"
        r" \qquad T_i = c\, \mathrm{std}(t_i), \quad T'_i = c\, \mathrm{std}(s_i)"
    ),
    "losses.normdkd": (
        r"L_i = T_i^2 \left[ \alpha\, \mathrm{TCKD}_i + \beta\, \mathrm{NCKD}_i \right]"
        r" \text{ of } t_i / T_i,\; s_i / T'_i, \qquad T_i = c\, \mathrm{std}(t_i), \quad"
        r" T'_i = c\, \mathrm{std}(s_i)"
    ),
    "losses.dtkd": (
        r"L_i = \alpha\, T_i T'_i\, \mathrm{KL}\big(\mathrm{softmax}(t_i / T_i) \,\Vert\,"
        r" \mathrm{softmax}(s_i / T'_i)\big) + \beta\, \mathrm{kd}_i(T)"
    ),
    "losses.dkd": (
        r"L_i = T_i^2 \left[ \alpha\, \mathrm{KL}(b_i \,\Vert\, b'_i) + \beta\,"
        r" \mathrm{KL}(\tilde p_i \,\Vert\,"
        r" \tilde q_i) \right], \qquad b = (p_y, 1 - p_y), \quad b' = (q_y, 1 - q_y)"
    ),
    "losses.rld": (
        r"L_i = \alpha\, T_c^2\, \mathrm{KL}(b_i \,\Vert\, b'_i) + \beta\, T_i^2\,"
        r" \mathrm{KL}(\tilde p_i \,\Vert\,"
        r" \tilde q_i), \qquad b = (\max p, 1 - \max p), \quad b' = (q_y, 1 - q_y)"
    ),
    "losses.gdkd": (
        r"L_i = T_i^2 \left[ \alpha\, \mathrm{KL}(b_i \,\Vert\, b'_i) + \beta\,"
        r" \mathrm{KL}(\hat p_i \,\Vert\, \hat q_i) + \gamma\, \mathrm{KL}(\tilde p_i \,\Vert\,"
        r" \tilde q_i) \right], \qquad b = (p_S, 1 - p_S), \quad b' = (q_S, 1 - q_S)"
    ),
    "losses.skd": (
        r"L = m_1\, \mathrm{KD}_T + m_2\, \frac{1}{B} \sum_i"
        r" \sqrt{d_i^\top (\mathrm{cov}(D) + \lambda I)^{-1} d_i}, \qquad D = (S S^\top - U U^\top) / K"
    ),
    "losses.dist": r"L = \beta\, \frac{1}{B} \sum_i \mathrm{inter}_i + \gamma\, \mathrm{intra}",
    "losses.dist_inter": r"L_i = T_i^2 \big(1 - \rho_k(p_i, q_i)\big)",
    "losses.dist_intra": (
        r"L = \overline{T_i^2}\, \Big(1 - \frac{1}{K} \sum_k \rho_i(p_{\cdot k},"
        r" q_{\cdot k})\Big)"
    ),
    "losses.batch_correlation": r"L = \lVert P P^\top - Q Q^\top \rVert_F^2 / B",
    "losses.class_correlation": r"L = \lVert P^\top P - Q^\top Q \rVert_F^2 / K",
    "losses.mlkd": (
        r"L = m_1 \sum_{T \in S} [\mathrm{KD}_T + \mathrm{BC}_T](w) + m_2 \sum_{T \in S} \mathrm{CC}_T(w)"
        r" + [\mathrm{KD}_{T_0} + \mathrm{KD}_3 + \mathrm{KD}_5](v) + [\mathrm{KD}_2 + \mathrm{KD}_6](w)"
    ),
    # Features
    "losses.attention": (
        r"L_b = \frac{1}{HW} \sum_p (a^s_{bp} - a^t_{bp})^2, \qquad a = \frac{v}{\lVert v \rVert}, \quad"
        r" v_p = \frac{1}{C} \sum_c \lvert f_{pc} \rvert^{r}"
    ),
    "losses.cc": (
        r"L = \frac{1}{B} \sum_b \sum_d \lvert s_{bd} - t_{bd} \rvert\, \lvert s_{(b+1)d} - t_{(b+1)d} \rvert"
    ),
    "losses.class_activation": r"L_b = \mathrm{mean}_{jk}\, (s_{bjk} - t_{bjk})^2",
    "losses.hcl": (r"L_b = \frac{\sum_l w_l\, \mathrm{mean}_j (P_l(s) - P_l(t))_{bj}^2}{\sum_l w_l}"),
    "losses.hint": r"L_b = \mathrm{mean}_j\, (s_{bj} - t_{bj})^2",
    "losses.itrd_correlation": (
        r"L = \log_2 \sum_d \lvert 1 - c_d \rvert^{2\alpha}, \qquad c_d ="
        r" \frac{1}{B} \sum_b z^s_{bd} z^t_{bd}"
    ),
    "losses.itrd_mutual": r"L = \sum_{ij} G_s^2 - \sum_{ij} (G_s \odot G_t)^2",
    "losses.nst": (
        r"L_b = \mathrm{mean}_{cd}\, k(t_c, t_d) + \mathrm{mean}_{cd}\, k(s_c, s_d)"
        r" - 2\, \mathrm{mean}_{cd}\,"
        r" k(s_c, t_d), \qquad k(x, y) = (x \cdot y)^2"
    ),
    "losses.nce": (
        r"L_i = -\log h(P_{i0}) - \sum_k \log\big(1 - h(P_{ik})\big), \qquad h(P) = \frac{P}{P + m / n}"
    ),
    "losses.ofd": r"L_b = \sum_j \big(s_{bj} - \max(t_{bj}, m_c)\big)^2",
    "losses.ofd_margin": r"m = b - g\, \frac{\varphi(b / g)}{\Phi(-b / g)}",
    "losses.pkt": r"L = \frac{1}{B^2} \sum_{ij} p_{ij} \log \frac{p_{ij}}{q_{ij}}",
    "losses.rkd": (
        r"L = w_d\, \mathrm{mean}_{ij}\, h(d^s_{ij} - d^t_{ij}) + w_a\, \mathrm{mean}_{ijk}\,"
        r" h(a^s_{ijk} - a^t_{ijk})"
    ),
    "losses.sp": r"L = \frac{1}{B^2} \sum_{ij} (g^s_{ij} - g^t_{ij})^2",
    "losses.vid": (
        r"L_b = \mathrm{mean}_j\, \frac12 \left( \frac{(s_{bj} - t_{bj})^2}{v_c} + \log v_c \right), \qquad"
        r" v_c = \log(1 + e^{r_c}) + 10^{-5}"
    ),
    # Temperatures
    "temperature.constant": r"T_i = T",
    "temperature.max_logit": (
        r"T_i = \tfrac{1 + \sqrt 3}{2} \max_k \max\big(\lvert s_{ik} \rvert, \lvert t_{ik} \rvert\big)"
    ),
    "temperature.max_ratio": (
        r"T_i = \frac{2\, T\, \max_k x_{ik}}{\max_k s_{ik} + \max_k t_{ik}}, \qquad x \in \{s, t\}"
    ),
    "temperature.standard_deviation": r"T_i = c\, \mathrm{std}_k(x_{ik}), \qquad x \in \{s, t\}",
    "temperature.learned": r"T = T_\mathrm{start} + T_\mathrm{end}\, \sigma(\theta)",
    "temperature.cosine_decay": (
        r"\lambda = \lambda_\mathrm{min} + \tfrac12 (\lambda_\mathrm{max} - \lambda_\mathrm{min})"
        r" \left(1 + \cos \frac{\pi \min(e, E)}{E}\right)"
    ),
    "temperature.linear_decay": (
        r"\lambda = -\frac{\min(e, E - 1)}{E} (\lambda_\mathrm{max} - \lambda_\mathrm{min})"
    ),
    "temperature.gradient_reversal": (
        r"y = x, \qquad \frac{\partial L}{\partial x} = \lambda \frac{\partial"
        r" L}{\partial y}"
    ),
    "temperature.scheduled": (
        r"T' = 0.9\, T + 0.1\, \mathrm{clip}(T_0\, c\, a,\; T_\mathrm{min}, T_\mathrm{max}), \qquad"
        r" c = \tfrac12 \big(1 + \cos(\kappa \pi\, \mathrm{progress})\big)"
    ),
    # Logits
    "logits.standardize": r"z_k = \frac{x_k - \bar x}{\mathrm{std}(x)}, \qquad"
    r" \mathrm{std}(x)^2 = \frac{1}{K - 1} \sum_k (x_k - \bar x)^2",
    "logits.pearson": (
        r"\rho = \frac{\sum_k (x_k - \bar x)(y_k - \bar y)}{\sqrt{\sum_k (x_k - \bar"
        r" x)^2 \sum_k (y_k - \bar y)^2}}"
    ),
}
