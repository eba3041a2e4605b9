"""Standards ids by topic: MITRE ATLAS 5.6.0, OWASP Machine Learning Security Top 10 (2023), NIST AI 100-2e2025.

The EU AI Act names accuracy metrics in Art. 15(3), resilience to errors, faults and inconsistencies in Art. 15(4), and
in Art. 15(5) data and model poisoning, adversarial examples, confidentiality attacks and model flaws.
"""

from __future__ import annotations

EVASION = ("MITRE ATLAS AML.T0015", "MITRE ATLAS AML.T0043", "OWASP ML01:2023", "NISTAML.022", "EU AI Act Art. 15(5)")
BLACK_BOX_EVASION = (
    "MITRE ATLAS AML.T0015",
    "MITRE ATLAS AML.T0043",
    "OWASP ML01:2023",
    "NISTAML.025",
    "EU AI Act Art. 15(5)",
)
POISONED_DATA = (
    "MITRE ATLAS AML.T0020",
    "MITRE ATLAS AML.T0059",
    "OWASP ML02:2023",
    "NISTAML.013",
    "EU AI Act Art. 15(5)",
)
BACKDOOR = (
    "MITRE ATLAS AML.T0018.000",
    "MITRE ATLAS AML.T0043.004",
    "OWASP ML10:2023",
    "NISTAML.023",
    "EU AI Act Art. 15(5)",
)
MEMBERSHIP = ("MITRE ATLAS AML.T0024.000", "OWASP ML04:2023", "NISTAML.033", "EU AI Act Art. 15(5)")
INVERSION = ("MITRE ATLAS AML.T0024.001", "OWASP ML03:2023", "NISTAML.032", "EU AI Act Art. 15(5)")
EXTRACTION = ("MITRE ATLAS AML.T0024.002", "OWASP ML05:2023", "NISTAML.031", "EU AI Act Art. 15(5)")
MALICIOUS_FILE = (
    "MITRE ATLAS AML.T0010.003",
    "MITRE ATLAS AML.T0011.000",
    "OWASP ML06:2023",
    "NISTAML.05",
    "EU AI Act Art. 15(5)",
)
ACCURACY = ("EU AI Act Art. 15(3)",)
FAULTS = ("EU AI Act Art. 15(4)",)
