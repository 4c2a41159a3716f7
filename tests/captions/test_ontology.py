from sonify.captions.ontology import class_ids_by_name, load_ontology


def named(name):
    return load_ontology()[class_ids_by_name()[name]]


def test_the_whole_ontology_is_there():
    ontology = load_ontology()
    assert len(ontology) == 632
    assert len(class_ids_by_name()) == 632


def test_ancestors_follow_every_parent():
    bark = named("Bark")
    above = {load_ontology()[class_id].name: steps for class_id, steps in bark.distances.items()}
    assert above["Bark"] == 0
    assert above["Dog"] == 1
    assert above["Animal"] == 3
    ambulance = {load_ontology()[class_id].name for class_id in named("Ambulance (siren)").distances}
    assert {"Siren", "Emergency vehicle"} <= ambulance


def test_groups_are_abstract():
    assert named("Human sounds").abstract
    assert not named("Dog").abstract
    assert named("Waves, surf").alternatives == ("waves", "surf")
