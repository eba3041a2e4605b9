"""Why a model decides as it does: attribution methods on Captum, and scores that say how far to believe them."""
