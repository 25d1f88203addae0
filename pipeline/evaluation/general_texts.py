"""How well a decoder still predicts ordinary English after it was tuned: a few short texts of many kinds.

In: a decoder and its tokenizer. Out: nats and bytes of every text, for the bits per byte of a model and of its base.
A tuning that changes nothing but the answers leaves them nearly as they were; one with too high a rate does not. The
texts were written for this purpose, so that no model has read them; they are few, so that they say what was lost and
not how good a model is.
"""

from typing import Any

import numpy as np

TEXTS = (
    "The bridge over the Aller was closed on Monday after an inspection found cracks in two of its bearings."
    " Traffic is being sent through the old town, where residents complain about noise and dust. The city"
    " expects the repair to take at least five weeks.",
    "Peel the onions and cut them into thin rings. Melt the butter in a wide pan, add the onions with a pinch"
    " of salt, and let them soften over low heat for half an hour. Stir now and then, and add a spoonful of"
    " water if they begin to stick.",
    "She had never liked the house at the end of the lane. Its windows were too small and its roof too heavy,"
    " as if it were hiding from somebody. But that evening a lamp burned in the kitchen, and through the open"
    " door she could hear someone singing.",
    "A lever is a rigid bar that turns about a fixed point. The farther from that point a force acts, the"
    " larger is its effect. This is why a long spanner loosens a bolt that a short one cannot move, and why"
    " doors have their handles far from the hinges.",
    "Dear Martin, thank you for the photographs. The one of the harbour is now on the wall above my desk. I"
    " am sorry that I could not come to the wedding; my train stood for six hours in the snow, and when it"
    " moved again, it went back to where it had started.",
    "The committee met four times during the year. It approved the accounts, elected a new treasurer, and"
    " asked the board to report on the cost of heating the hall. A proposal to raise the fee was rejected by"
    " seven votes to five, with two members abstaining.",
    "Bats find their way at night by listening to the echo of their own calls. The calls are too high for"
    " human ears. From the time that an echo takes, and from how it has changed, a bat can tell how far away"
    " an insect is and in which direction it flies.",
    "To reset the device, hold the small button on the back for ten seconds until the light turns red."
    " Release the button and wait for the light to turn green. All settings are lost when you do this, so"
    " write down the name of your network before you begin.",
    '"You said that you would be here at eight," he said. "I said about eight," she replied, "and it is'
    ' hardly a quarter past." He looked at his watch, then at the clock above the bar, which had stopped years'
    " ago, and decided to say nothing more about it.",
    "In the sixteenth century the town grew rich by trading salt. Ships carried it down the river to the"
    " coast, and came back with herring, cloth and wine. When the river silted up, the merchants left, and"
    " their tall brick houses were turned into barns and workshops.",
    "The patient was advised to take one tablet in the morning and one in the evening, always with food. She"
    " reported mild dizziness during the first week, which disappeared without treatment. Blood pressure was"
    " measured again after a month and was within the normal range.",
    "The second half was better than the first. Keller equalised with a header after a corner, and ten"
    " minutes later the visitors hit the post. In the end both teams seemed content with a draw, which leaves"
    " them in the middle of the table with three matches to play.",
    "Interest is paid at the end of each quarter. If you withdraw money before the end of the term, the bank"
    " charges a fee of one per cent of the amount. The contract is renewed for another year unless one of the"
    " parties cancels it in writing four weeks before.",
    "def mean(values):\n"
    '    """The average of some numbers."""\n'
    "    total = 0\n"
    "    for value in values:\n"
    "        total += value\n"
    "    return total / len(values)\n"
    "\n"
    "print(mean([1, 2, 3]))\n",
    "We stayed for two nights in the small hotel next to the station. The room was clean and quiet, and the"
    " breakfast was excellent, with fresh bread and three kinds of jam. The only drawback was the shower,"
    " which was either too hot or too cold, never in between.",
    "What makes a promise binding? One answer is that it raises an expectation in somebody else, who plans a"
    " part of life around it. But I may promise something to a dying friend, who will never know whether I"
    " kept my word, and I am bound nevertheless.",
    "Tomorrow will be cloudy with some rain in the west, where winds may reach the strength of a gale along"
    " the coast. In the east it stays dry until the evening. Temperatures rise to twelve degrees in the"
    " valleys and to about five degrees on the higher hills.",
    "The old man wound the clock every Sunday, as his father had done before him. He did not trust batteries."
    " A thing that stops without warning, he said, is worse than a thing that has to be looked after, and"
    " there was nobody in the village who disagreed.",
)


def general_losses(network: Any, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes of what is predicted of each text, float64 and int64 (N,): all but the first token, as far as
    the context reaches."""
    from model.data.chat import Rendered
    from model.data.conversations import EncodedConversations
    from model.evaluate_conversations import conversation_losses

    most = network.cfg.max_seq_len
    ids = [np.array([*tokenizer.opening, *of_text][:most]) for of_text in tokenizer.encode_batch(list(TEXTS))]
    rendered = [Rendered(of_text, np.arange(len(of_text)) > 0) for of_text in ids]
    encoded = EncodedConversations(list(map(str, range(len(ids)))), rendered)
    n_bytes = [sum(len(tokenizer.tokens[token]) for token in of_text[1:].tolist()) for of_text in ids]
    return conversation_losses(network, encoded)[0], np.array(n_bytes, np.int64)
